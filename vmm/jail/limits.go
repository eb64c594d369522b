package jail

import (
	"golang.org/x/sys/unix"

	"manis/launch"
)

// maxFiles is how many descriptors a jailed process may have: a file server
// needs one for each file that its client has open.
const maxFiles = 1 << 16

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
	} {
		var now unix.Rlimit
		if unix.Getrlimit(l.resource, &now) == nil {
			l.max = min(l.max, now.Max)
		}
		p.Rlimit(l.name, l.resource, l.max, l.max)
	}
}
