package jail

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"manis/launch"
)

// Landlock is a second wall behind the jail's root, namespaces and filter, of another make: it would hold if one of these did not. By itself
// it adds little to them, and that only: of the files in the root none but the program and its loader can be executed; and a process that serves
// shares, which remains root's user, can signal and trace none outside. The kernel shows nowhere that it is in force.

// ruled are the rights to files that the rules are about, by the first version of Landlock's interface that has them.
var ruled = []struct {
	abi    int
	rights uint64
}{
	{1, unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | changing},
	{2, unix.LANDLOCK_ACCESS_FS_REFER},
	{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
	{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
}

const (
	changing = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	reading = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	// sharing are the rights to a writable share: all but to execute.
	sharing = reading | changing | unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	// filing are the rights to a file that is written to, which cannot be those to directories.
	filing = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// landlock is the version of Landlock's interface that the kernel has. 0 is none, and why says so.
var landlock = sync.OnceValues(func() (abi int, why error) {
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, fmt.Errorf("the kernel has no Landlock, or it is switched off (boot parameter lsm=) or forbidden here: %w", errno)
	}
	return int(n), nil
})

// fence adds Landlock's rules, where they can be had. Its working directory is the root of the jail.
func (j *Process) fence(p *launch.Program, c *Config, program string) {
	abi, err := landlock()
	switch {
	case err != nil:
		j.fenceless = err.Error()
		return
	case abi < 2 && len(c.Shares) > 0:
		j.fenceless = "Landlock of this kernel would forbid to move files between directories of a share"
		return
	}
	var handled uint64
	for _, r := range ruled {
		if abi >= r.abi {
			handled |= r.rights
		}
	}
	attr := binary.NativeEndian.AppendUint64(nil, handled) // struct landlock_ruleset_attr
	j.fenced = fmt.Sprintf("version %d: what may be done with which files", abi)
	if abi >= 4 {
		attr = binary.NativeEndian.AppendUint64(attr, unix.LANDLOCK_ACCESS_NET_BIND_TCP|unix.LANDLOCK_ACCESS_NET_CONNECT_TCP)
		j.fenced += "; no TCP"
	}
	if abi >= 6 {
		attr = binary.NativeEndian.AppendUint64(attr, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET|unix.LANDLOCK_SCOPE_SIGNAL)
		j.fenced += "; no signals and abstract sockets beyond the jail"
	}
	flags := uint32(0)
	if abi >= 7 {
		flags = unix.LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON
	}
	var rules []launch.LandlockRule
	allow := func(path string, access uint64) {
		rules = append(rules, launch.LandlockRule{Path: path, Access: access & handled})
	}
	allow("/", reading)
	allow(program, unix.LANDLOCK_ACCESS_FS_EXECUTE)
	if c.Closure != nil && c.Closure.Interpreter != "" {
		allow(c.Closure.Interpreter, unix.LANDLOCK_ACCESS_FS_EXECUTE)
	}
	if c.KVM {
		allow("/dev", filing|unix.LANDLOCK_ACCESS_FS_IOCTL_DEV)
	}
	for _, f := range c.Files {
		if f.Writable {
			allow(filepath.Join("/", f.Inside), filing)
		}
	}
	for _, s := range c.Shares {
		if s.mayWrite() {
			allow(filepath.Join(SharesDir, s.Name), sharing)
		}
	}
	p.Landlock(attr, rules, flags)
}

// mayWrite reports whether something of a share may be written to, or may come to be.
func (s Share) mayWrite() bool {
	if s.Grows {
		return true
	}
	for _, e := range s.Entries {
		if e.mayWrite(false) {
			return true
		}
	}
	return false
}

// landlock says what is asked of the kernel, which shows nobody what it has granted: had it refused, the process would not run.
func (v *verifier) landlock() Fact {
	if v.p.fenceless != "" {
		return Fact{Name: "Landlock", Optional: true, Detail: v.p.fenceless}
	}
	return Fact{Name: "Landlock", InForce: true, Optional: true, Detail: v.p.fenced}
}
