package agent

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// capabilityNames are in the order of their numbers.
const capabilityNames = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP " +
	"LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE " +
	"SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME " +
	"SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG " +
	"WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// lastCapability is the highest one that guest kernels of our kind have.
const lastCapability = unix.CAP_LAST_CAP

// capabilityMask turns names into a bit mask.
func capabilityMask(names []string) (uint64, error) {
	var mask uint64
next:
	for _, name := range names {
		short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		i := 0
		for known := range strings.FieldsSeq(capabilityNames) {
			if known == short {
				mask |= 1 << i
				continue next
			}
			i++
		}
		return 0, fail(codes.InvalidArgument, fmt.Errorf("unknown capability %q", name))
	}
	return mask, nil
}

// capabilities are the five sets of a process as bit masks.
type capabilities struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

func parseCapabilities(c *api.Capabilities) (capabilities, error) {
	var set capabilities
	for _, p := range []struct {
		names []string
		mask  *uint64
	}{
		{c.GetBounding(), &set.bounding},
		{c.GetEffective(), &set.effective},
		{c.GetPermitted(), &set.permitted},
		{c.GetInheritable(), &set.inheritable},
		{c.GetAmbient(), &set.ambient},
	} {
		var err error
		if *p.mask, err = capabilityMask(p.names); err != nil {
			return set, err
		}
	}
	return set, nil
}

// rlimits by name, without the prefix.
var rlimits = map[string]int{
	"AS": unix.RLIMIT_AS, "CORE": unix.RLIMIT_CORE, "CPU": unix.RLIMIT_CPU, "DATA": unix.RLIMIT_DATA,
	"FSIZE": unix.RLIMIT_FSIZE, "LOCKS": unix.RLIMIT_LOCKS, "MEMLOCK": unix.RLIMIT_MEMLOCK,
	"MSGQUEUE": unix.RLIMIT_MSGQUEUE, "NICE": unix.RLIMIT_NICE, "NOFILE": unix.RLIMIT_NOFILE,
	"NPROC": unix.RLIMIT_NPROC, "RSS": unix.RLIMIT_RSS, "RTPRIO": unix.RLIMIT_RTPRIO,
	"RTTIME": unix.RLIMIT_RTTIME, "SIGPENDING": unix.RLIMIT_SIGPENDING, "STACK": unix.RLIMIT_STACK,
}
