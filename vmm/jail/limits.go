package jail

import (
	"sync"

	"golang.org/x/sys/unix"

	"manis/launch"
	"manis/seccomp"
)

// maxFiles is how many descriptors a jailed process may have: a file server
// needs one for each file that its client has open.
const maxFiles = 1 << 16

// maxThreads is how many threads a jailed process may have: one for each
// virtual processor, and pools for files and disks of 64 each.
const maxThreads = 1024

// countsPerNamespace reports whether RLIMIT_NPROC counts the threads of a user
// namespace by themselves (Linux 5.14). Before, an ordinary user's other processes
// would count.
var countsPerNamespace = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	k, err := seccomp.ParseKernel(unix.ByteSliceToString(u.Release[:]))
	return err == nil && (k.Major > 5 || k.Major == 5 && k.Minor >= 14)
})

// setLimits lowers resource limits; none is ever raised, which could need a privilege.
func setLimits(p *launch.Program) {
	for _, l := range []struct {
		name     string
		resource int
		max      uint64
	}{
		{"core size", unix.RLIMIT_CORE, 0},
		{"number of open files", unix.RLIMIT_NOFILE, maxFiles},
		{"locked memory", unix.RLIMIT_MEMLOCK, 64 << 10},
		{"message queues", unix.RLIMIT_MSGQUEUE, 0},
		{"pending signals", unix.RLIMIT_SIGPENDING, 128},
		{"number of threads", unix.RLIMIT_NPROC, maxThreads},
	} {
		if l.resource == unix.RLIMIT_NPROC && !countsPerNamespace() {
			continue
		}
		var now unix.Rlimit
		if unix.Getrlimit(l.resource, &now) == nil {
			l.max = min(l.max, now.Max)
		}
		p.Rlimit(l.name, l.resource, l.max, l.max)
	}
}
