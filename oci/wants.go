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

// verbFlags are flags of shared verbs that only the runtime has.
var verbFlags = map[string][]string{
	"create":     {"--bundle", "-b", "--console-socket", "--pid-file", "--preserve-fds", "--no-pivot", "--no-new-keyring"},
	"run":        {"--bundle", "-b", "--console-socket", "--pid-file", "--preserve-fds", "--no-pivot", "--no-new-keyring", "--no-subreaper", "--keep"},
	"exec":       {"--console-socket", "--pid-file", "--process", "-p", "--preserve-fds", "--cwd", "--cap", "-c", "--additional-gids", "-g", "--no-new-privs", "--process-label", "--apparmor", "--ignore-paused", "--cgroup"},
	"update":     {"--resources", "-r"},
	"checkpoint": {"--image-path", "--work-path", "--parent-path", "--tcp-established", "--shell-job", "--file-locks"},
	"restore":    {"--bundle", "-b", "--image-path", "--work-path", "--console-socket", "--pid-file"},
}

// Wants reports whether a command line is the runtime's: it has a flag or a verb that only the
// runtime has, it names a container that was made from a bundle, or it asks to create one in a
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
	var names []string
	for i, arg := range rest {
		if arg == "--" {
			names = append(names, rest[i+1:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") {
			names = append(names, arg)
			// What follows belongs to the container's command, or is another name.
			if verb == "run" || verb == "exec" || verb == "create" {
				break
			}
			continue
		}
		if name, _, _ := strings.Cut(arg, "="); slices.Contains(verbFlags[verb], name) {
			return true
		}
	}
	if len(names) == 0 || checkID(names[0]) != nil {
		return false
	}
	if verb == "create" || verb == "run" {
		_, err := os.Stat("config.json")
		return err == nil && rest[len(rest)-1] == names[0]
	}
	if root == "" {
		places, err := place.Find("", "")
		if err != nil {
			return false
		}
		root = defaultRoot(places)
	}
	_, err := os.Stat(filepath.Join(root, names[0], "state.json"))
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
		return args[1:]
	}
	return args
}
