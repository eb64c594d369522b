package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"manis/place"
)

// Verbs that docker's command line does not have, and those that both have.
var (
	ownVerbs    = []string{"state", "delete", "list", "resume", "events", "spec", "features"}
	sharedVerbs = []string{"create", "start", "run", "exec", "kill", "ps", "pause", "update", "checkpoint", "restore"}
)

// globalFlags come before the verb and are not docker's. Those with a value say so.
var globalFlags = map[string]bool{
	"--root": true, "--log": true, "--log-format": true, "--rootless": true, "--criu": true,
	"--debug": false, "--systemd-cgroup": false,
}

// imageFlags are those of both checkpoint and restore.
const imageFlags = "--tcp-established --tcp-skip-in-flight --link-remap --ext-unix-sk --shell-job --file-locks --lazy-pages --auto-dedup " +
	"--manage-cgroups-mode= --empty-ns= --status-fd="

// verbFlags are the runtime's flags of the shared verbs: those that docker has, too, and those that only
// the runtime has. A flag that takes a value ends in "=".
var verbFlags = map[string]struct{ both, own string }{
	"create": {"", "--bundle= -b= --console-socket= --pid-file= --preserve-fds= --no-pivot --no-new-keyring"},
	"run":    {"--detach -d", "--bundle= -b= --console-socket= --pid-file= --preserve-fds= --no-pivot --no-new-keyring --no-subreaper --keep"},
	"exec": {"--user= -u= --env= -e= --tty -t --detach -d", "--console-socket= --pid-file= --process= -p= --preserve-fds= --cwd= --cap= -c= --additional-gids= -g= " +
		"--no-new-privs --process-label= --apparmor= --ignore-paused --cgroup="},
	"start": {}, "pause": {},
	"kill": {"", "--all -a"},
	"ps":   {"--format= -f=", ""},
	"update": {"--memory= --memory-reservation= --memory-swap= --cpu-period= --cpu-quota= --cpuset-cpus= --cpuset-mems= --blkio-weight= --pids-limit=",
		"--resources= -r= --cpu-share= --cpu-burst= --cpu-idle="},
	"checkpoint": {"--leave-running", "--image-path= --work-path= --parent-path= --pre-dump --page-server= " + imageFlags},
	"restore": {"--detach -d", "--bundle= -b= --image-path= --work-path= --console-socket= --pid-file= --no-pivot --no-subreaper " +
		"--lsm-profile= --lsm-mount-context= " + imageFlags},
}

// parse reads a verb's arguments as the runtime would: the first one that is no flag, whether it is the last, and
// whether there is a flag that only the runtime has. It fails at a flag that the runtime does not have.
func parse(verb string, args []string) (name string, last, own, ok bool) {
	flags := verbFlags[verb]
	args = twoDashes(verb, args)
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" && i+1 < len(args) {
			i++
			arg = args[i]
		} else if strings.HasPrefix(arg, "-") {
			key, _, valued := strings.Cut(arg, "=")
			find := func(list string) (found, value bool) {
				names := strings.Fields(list)
				if slices.Contains(names, key) {
					return true, false
				}
				return slices.Contains(names, key+"="), true
			}
			found, value := find(flags.own)
			if found {
				own = true
			} else if found, value = find(flags.both); !found {
				return "", false, false, false
			}
			if value && !valued {
				i++
			}
			continue
		}
		// The rest is the command's, or a signal.
		return arg, i == len(args)-1, own, true
	}
	return "", false, own, true
}

// twoDashes gives the runtime's flags before the container's id two dashes where they have one, which runc takes,
// too, and containerd once relies on.
func twoDashes(verb string, args []string) []string {
	flags := verbFlags[verb]
	names := strings.Fields(flags.own + " " + flags.both)
	args = slices.Clone(args)
	for i := 0; i < len(args) && len(args[i]) > 1 && args[i][0] == '-'; i++ {
		key, _, valued := strings.Cut(args[i], "=")
		if key[1] != '-' && (slices.Contains(names, "-"+key) || slices.Contains(names, "-"+key+"=")) {
			args[i], key = "-"+args[i], "-"+key
		}
		if slices.Contains(names, key+"=") && !valued {
			i++
		}
	}
	return args
}

// Wants reports whether a command line is the runtime's: it has a flag or a verb that only the
// runtime has, it names a container that was made from a bundle, or it asks to make one in a
// directory that is a bundle. "manis oci ..." says so in any case.
func Wants(args []string) bool {
	verb, rest, root, global := split(args)
	switch {
	case verb == "oci", slices.Contains(ownVerbs, verb):
		return true
	case !slices.Contains(sharedVerbs, verb):
		return false
	case global:
		return true
	}
	name, last, own, ok := parse(verb, rest)
	switch {
	case !ok:
		return false
	case own:
		return true
	case checkID(name) != nil:
		return false
	case verb == "create", verb == "run", verb == "restore":
		_, err := os.Stat("config.json")
		return err == nil && last
	}
	if root == "" {
		places, err := place.Find("", "")
		if err != nil {
			return false
		}
		root = defaultRoot(places)
	}
	_, err := os.Stat(filepath.Join(root, name, "state.json"))
	return err == nil
}

// split finds the verb, what follows it, and what comes before: a root, and whether there is a
// flag that only the runtime has. --root alone says nothing: docker's command line has one, too.
func split(args []string) (verb string, rest []string, root string, global bool) {
	for i := 0; i < len(args); i++ {
		name, value, valued := strings.Cut(args[i], "=")
		hasValue, known := globalFlags[name]
		switch {
		case known:
			if hasValue && !valued && i+1 < len(args) {
				i++
				value = args[i]
			}
			if name == "--root" {
				root = value
			} else {
				global = true
			}
		case strings.HasPrefix(name, "-"):
			return "", nil, "", false
		default:
			return args[i], args[i+1:], root, global
		}
	}
	return "", nil, "", false
}

// Args are the arguments for Main.
func Args(args []string) []string {
	if len(args) > 0 && args[0] == "oci" {
		args = args[1:]
	}
	verb, rest, _, _ := split(args)
	return append(slices.Clone(args[:len(args)-len(rest)]), twoDashes(verb, rest)...)
}
