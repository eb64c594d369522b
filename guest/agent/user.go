package agent

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// Bounds of what is read of a container's user database.
const (
	maxUserFile = 4 << 20
	maxGroups   = 65536
)

// identity is as whom a process runs.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// passwdEntry is a line of /etc/passwd.
type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

// groupEntry is a line of /etc/group.
type groupEntry struct {
	name    string
	gid     uint32
	members string // comma-separated
}

// fields splits a line of a user database; false for comments, for lines with
// too few fields and for the NIS marks of old.
func fields(line string, least int) ([]string, bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' || line[0] == '+' || line[0] == '-' {
		return nil, false
	}
	f := strings.Split(line, ":")
	return f, len(f) >= least && f[0] != ""
}

// parseID reads a user or group id. The highest is reserved: it means "do not
// change" to the kernel.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

// findUser returns the first entry that match accepts.
func findUser(passwd string, match func(e passwdEntry) bool) (passwdEntry, bool) {
	for line := range strings.Lines(passwd) {
		f, ok := fields(line, 4)
		if !ok {
			continue
		}
		e := passwdEntry{name: f[0]}
		var okUID, okGID bool
		e.uid, okUID = parseID(f[2])
		e.gid, okGID = parseID(f[3])
		if len(f) > 5 {
			e.home = f[5]
		}
		if okUID && okGID && match(e) {
			return e, true
		}
	}
	return passwdEntry{}, false
}

// eachGroup calls f with every entry until it returns false.
func eachGroup(group string, f func(e groupEntry) bool) {
	for line := range strings.Lines(group) {
		p, ok := fields(line, 3)
		if !ok {
			continue
		}
		e := groupEntry{name: p[0]}
		if e.gid, ok = parseID(p[2]); !ok {
			continue
		}
		if len(p) > 3 {
			e.members = p[3]
		}
		if !f(e) {
			return
		}
	}
}

func findGroup(group, nameOrID string) (uint32, bool) {
	var found uint32
	ok := false
	eachGroup(group, func(e groupEntry) bool {
		if e.name == nameOrID {
			found, ok = e.gid, true
		}
		return !ok
	})
	if !ok {
		found, ok = parseID(nameOrID)
	}
	return found, ok
}

// lookUp resolves a process's user by the rules of docker: "USER[:GROUP]", each
// by name, or by number when there is no such name. Without a group the user's own
// and its supplementary ones count; an unknown numeric user gets group 0. Both files may be
// missing.
func lookUp(p *api.Process, passwd, group string) (identity, error) {
	id := identity{uid: p.Uid, gid: p.Gid, groups: slices.Clone(p.AdditionalGids)}
	user, groupName, hasGroup := strings.Cut(p.User, ":")
	var entry passwdEntry
	var known bool
	switch {
	case p.User == "":
		entry, known = findUser(passwd, func(e passwdEntry) bool { return e.uid == id.uid })
	case user == "":
		id.uid, id.gid = 0, 0
		entry, known = findUser(passwd, func(e passwdEntry) bool { return e.uid == 0 })
	default:
		number, isNumber := parseID(user)
		entry, known = findUser(passwd, func(e passwdEntry) bool {
			return e.name == user || isNumber && e.uid == number
		})
		switch {
		case known:
			id.uid, id.gid = entry.uid, entry.gid
		case isNumber:
			id.uid, id.gid = number, 0
		default:
			return id, fail(codes.InvalidArgument, fmt.Errorf("unable to find user %s: no matching entries in passwd file", user))
		}
	}
	if hasGroup && groupName != "" {
		gid, ok := findGroup(group, groupName)
		if !ok {
			return id, fail(codes.InvalidArgument, fmt.Errorf("unable to find group %s: no matching entries in group file", groupName))
		}
		id.gid = gid
	} else if p.User != "" && known {
		eachGroup(group, func(e groupEntry) bool {
			for m := range strings.SplitSeq(e.members, ",") {
				if m == entry.name && len(id.groups) < maxGroups {
					id.groups = append(id.groups, e.gid)
					break
				}
			}
			return true
		})
	}
	for _, name := range p.AdditionalGroups {
		gid, ok := findGroup(group, name)
		if !ok {
			return id, fail(codes.InvalidArgument, fmt.Errorf("unable to find group %s: no matching entries in group file", name))
		}
		id.groups = append(id.groups, gid)
	}
	if len(id.groups) > maxGroups {
		return id, fail(codes.InvalidArgument, errors.New("too many supplementary groups"))
	}
	slices.Sort(id.groups)
	id.groups = slices.Compact(id.groups)
	id.home = "/"
	if known && entry.home != "" {
		id.home = entry.home
	}
	return id, nil
}

// identify resolves a process's user on a thread inside the container.
func identify(p *api.Process) (identity, error) {
	if p.User == "" && len(p.AdditionalGroups) == 0 && hasHome(p.Env) {
		// Everything is said in numbers: files that may be the host's need not be asked for.
		return lookUp(p, "", "")
	}
	passwd, err := userFile("/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	var group string
	if p.User != "" || len(p.AdditionalGroups) > 0 {
		if group, err = userFile("/etc/group"); err != nil {
			return identity{}, err
		}
	}
	return lookUp(p, passwd, group)
}

// userFile reads a file of users or groups. One that is not there, or is hidden (maskedPaths), knows nobody.
func userFile(path string) (string, error) {
	b, err := readFile(path, maxUserFile)
	var st unix.Stat_t
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return "", nil
	case unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3):
		return "", nil
	}
	return string(b), err
}
