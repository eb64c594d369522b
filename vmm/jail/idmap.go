package jail

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"manis/launch"
)

// IDMap says under which ids the process sees the owners of an entry's files, and which owners files get that it makes
// (mount_setattr(2), MOUNT_ATTR_IDMAP).
type IDMap struct {
	Users, Groups []IDRange
	// Below holds it for the mounts below the entry's own, too.
	Below bool
}

// IDRange is Size ids from Host on, that are those from Seen on for the process.
type IDRange struct{ Host, Seen, Size uint32 }

// maxRanges is the kernel's bound of a map (user_namespaces(7)), less one for the process itself.
const maxRanges = 339

// namespace makes a user namespace with the ids, which the kernel takes a mount's from. The caller closes it.
func (m *IDMap) namespace() (*os.File, error) {
	if len(m.Users) == 0 || len(m.Groups) == 0 || len(m.Users) > maxRanges || len(m.Groups) > maxRanges {
		return nil, fmt.Errorf("%d ranges of users and %d of groups", len(m.Users), len(m.Groups))
	}
	p := new(launch.Program)
	defer p.Release()
	var ns *os.File
	p.Call("make a user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	p.Meet("map ids", func(pid int) error {
		for _, file := range []struct {
			name   string
			ranges []IDRange
		}{{"uid_map", m.Users}, {"gid_map", m.Groups}} {
			var lines strings.Builder
			for _, r := range withMaker(file.ranges) {
				fmt.Fprintf(&lines, "%d %d %d\n", r.Host, r.Seen, r.Size)
			}
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file.name), []byte(lines.String()), 0); err != nil {
				return err
			}
		}
		var err error
		ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
		return err
	})
	if err := carryOut(p); err != nil {
		if ns != nil {
			ns.Close()
		}
		return nil, err
	}
	if ns == nil {
		return nil, errors.New("the child ended before it had one")
	}
	return ns, nil
}

// maker is the id that a new file has on the host until the process hands it to its owner. Nobody else has it: it is the last one.
const maker = 1<<32 - 2

// withMaker lets the process, which is user 0, make files: the kernel demands that its own id is one of the mapping's.
func withMaker(ranges []IDRange) []IDRange {
	for _, r := range ranges {
		if r.Seen == 0 || r.Host <= maker && maker-r.Host < r.Size {
			return ranges
		}
	}
	return append(slices.Clone(ranges), IDRange{Host: maker, Seen: 0, Size: 1})
}

// refused adds what it means that the kernel does not map the ids of a filesystem.
func (m *IDMap) refused(host string, err error) error {
	switch {
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM):
		return err
	case m.Below:
		return fmt.Errorf("%w: the host's kernel does not mount the filesystem of %s, or one that is mounted below it, with mapped ids, "+
			"as hostUsers: false needs it (ext4 and XFS from Linux 5.12 on, overlayfs from 5.19, tmpfs from 6.3; network filesystems seldom)", err, host)
	}
	return fmt.Errorf("%w: the host's kernel does not mount the filesystem of %s with mapped ids, as hostUsers: false needs it "+
		"(ext4 and XFS from Linux 5.12 on, overlayfs from 5.19, tmpfs from 6.3; network filesystems seldom)", err, host)
}
