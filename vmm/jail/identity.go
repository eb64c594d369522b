package jail

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"manis/launch"
)

// identity is who the jailed process is.
//
// Started by an ordinary user, or without shares by a root that is not the host's, it remains that user for the
// host, whose ID is the only one in its user namespace, and has no capability.
//
// Started by root without shares of others' files it becomes a user that no other running jail has (users.go),
// which again is the only one in its user namespace, without capabilities.
//
// Started with shares by root, or by root of a user namespace that holds several IDs as under rootless Podman, it has to serve files of every owner, as a
// container engine run by root does: read and write what belongs to root, and hand
// files to other owners. It remains user 0 in a user namespace that maps every
// ID, so that file servers that ask for the user (NFS, FUSE) see root as they do
// with other engines, with the capabilities that override file permissions,
// and no others. Being relative to its user namespace, these four give nothing but
// access to the files it can name, which are those of the shares: no device nodes, no
// handles to files outside, no other privilege of root.
type identity struct {
	root bool
	uid  uint32
	gid  uint32
	// every maps all IDs that its starter has into the user namespace, else only uid and gid.
	every bool
	caps  uint64
}

const (
	readFiles  = 1 << unix.CAP_DAC_READ_SEARCH
	writeFiles = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID
)

func identify(c *Config) identity {
	host, of := privileged()
	shares := slices.ContainsFunc(c.Shares, Share.foreign)
	if !host && (!of || !shares) {
		return identity{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	}
	id := identity{root: true, every: shares}
	for _, s := range c.Shares {
		if s.Grows {
			id.caps |= writeFiles
		}
		for _, e := range s.Entries {
			switch {
			case e.Own:
			case !e.mayWrite(false):
				id.caps |= readFiles
			default:
				id.caps |= writeFiles
			}
		}
	}
	return id
}

// privileged reports whether this process is root with what the privileged way needs: of the host,
// or of a user namespace that holds more IDs than its own. Any other root goes the way of ordinary users.
func privileged() (host, namespace bool) {
	if os.Geteuid() != 0 {
		return false, false
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, false
	}
	var caps [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return false, false
	}
	want := uint32(1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_CHOWN)
	f := strings.Fields(string(b))
	if len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295" {
		want |= 1 << unix.CAP_MKNOD
		return caps[0].Effective&want == want, false
	}
	return false, len(f) > 3 && caps[0].Effective&want == want
}

// everyID maps each ID of this process's user namespace to itself in a new one below it.
func everyID(file string) (string, error) {
	b, err := os.ReadFile("/proc/self/" + file)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 {
			fmt.Fprintf(&text, "%s %s %s\n", f[0], f[0], f[2])
		}
	}
	return text.String(), nil
}

// mapSelf maps the own user from inside the user namespace, the only mapping
// that needs no privilege.
func (id identity) mapSelf(p *launch.Program) {
	p.WriteFile("/proc/self/setgroups", "deny")
	p.WriteFile("/proc/self/uid_map", fmt.Sprintf("%d %d 1", id.uid, id.uid))
	p.WriteFile("/proc/self/gid_map", fmt.Sprintf("%d %d 1", id.gid, id.gid))
}

// enter moves a process of root into its user namespace. It comes after the
// mounts, so that the mount namespace belongs to the host's user namespace and
// the process could not change it with any capability of its own.
func (id identity) enter(p *launch.Program) {
	p.Groups(nil)
	p.Call("make user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	p.Meet("map users", func(pid int) error {
		dir := "/proc/" + strconv.Itoa(pid)
		uid, gid := fmt.Sprintf("%d %d 1", id.uid, id.uid), fmt.Sprintf("%d %d 1", id.gid, id.gid)
		if id.every {
			var err error
			if uid, err = everyID("uid_map"); err == nil {
				gid, err = everyID("gid_map")
			}
			if err != nil {
				return err
			}
		}
		if err := os.WriteFile(dir+"/gid_map", []byte(gid), 0); err != nil {
			return err
		}
		return os.WriteFile(dir+"/uid_map", []byte(uid), 0)
	})
}

// device prepares a place for /dev/kvm.
func (id identity) device(p *launch.Program, r *room) {
	r.mkdir("/dev")
	if !id.root {
		p.CreateFile("dev/kvm", 0o444)
	}
}

// bindDevice shows /dev/kvm, after everything else was forbidden to hold
// devices. An ordinary user sees the host's, if it may; for root's VMM, which is
// somebody else, a node that only it may open is made.
func (id identity) bindDevice(p *launch.Program) {
	if !id.root {
		p.Mount("/dev/kvm", "dev/kvm", "", unix.MS_BIND, "")
		setattr(p, "dev/kvm", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
		return
	}
	p.Mount("tmpfs", "dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=4k,nr_inodes=4")
	p.Call("make /dev/kvm", unix.SYS_MKNODAT, unix.AT_FDCWD, "dev/kvm", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 232)))
	p.Call("own /dev/kvm", unix.SYS_FCHOWNAT, unix.AT_FDCWD, "dev/kvm", int(id.uid), int(id.gid), 0)
	setattr(p, "dev", unix.MOUNT_ATTR_RDONLY)
}

// lastCapability is the highest capability that this kernel knows.
var lastCapability = sync.OnceValue(func() int {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= 0 && n < 64 {
			return n
		}
	}
	return unix.CAP_LAST_CAP
})
