package jail

import (
	"fmt"
	"math/bits"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// needless are the capabilities that no process which starts jails needs, whatever it does besides: with networks, mounts, control groups, or the
// files of containers. Those are here that change the host for everybody, or read what is everybody's.
const needless = 1<<unix.CAP_LINUX_IMMUTABLE | 1<<unix.CAP_NET_BROADCAST | 1<<unix.CAP_IPC_LOCK | 1<<unix.CAP_IPC_OWNER |
	1<<unix.CAP_SYS_MODULE | 1<<unix.CAP_SYS_RAWIO | 1<<unix.CAP_SYS_PACCT | 1<<unix.CAP_SYS_BOOT | 1<<unix.CAP_SYS_TIME |
	1<<unix.CAP_SYS_TTY_CONFIG | 1<<unix.CAP_LEASE | 1<<unix.CAP_AUDIT_WRITE | 1<<unix.CAP_AUDIT_CONTROL | 1<<unix.CAP_MAC_OVERRIDE |
	1<<unix.CAP_MAC_ADMIN | 1<<unix.CAP_SYSLOG | 1<<unix.CAP_WAKE_ALARM | 1<<unix.CAP_BLOCK_SUSPEND | 1<<unix.CAP_AUDIT_READ |
	1<<unix.CAP_PERFMON | 1<<unix.CAP_BPF

// StartKeeper has a command started that will start jails: without the capabilities, for good, that it has no need for, and so all that it starts. start is
// cmd.Start, or starts it in another way from the thread that calls it. Who may not take any away, as ordinary users may not, has nothing to take.
//
// A process's threads have capabilities each for itself. So these are taken from a thread that exists for the start alone, by which the
// command inherits it: nothing stops, and no thread can be missed. The command must not die with its parent's thread (Pdeathsig).
func StartKeeper(start func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine.
		runtime.LockOSThread()
		for c := range lastCapability() + 1 {
			if needless&(1<<c) != 0 {
				unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
			}
		}
		// What is inheritable would be root's again when it executes.
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if unix.Capget(&head, &caps[0]) == nil {
			for i := range caps {
				caps[i].Inheritable &^= uint32(uint64(needless) >> (32 * i))
			}
			unix.Capset(&head, &caps[0])
		}
		done <- start()
	}()
	return <-done
}

// starter says what this process, which has started the jail, has given up.
func (v *verifier) starter() Fact {
	f := Fact{Name: "starter", Optional: true}
	status, err := readStatus("/proc/self/status")
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	var sets [2]uint64
	for i, name := range []string{"CapPrm", "CapBnd"} {
		if sets[i], err = strconv.ParseUint(status[name], 16, 64); err != nil {
			f.Detail = err.Error()
			return f
		}
	}
	can := uint64(1)<<(lastCapability()+1) - 1
	switch {
	case sets[0] == 0:
		f.InForce, f.Detail = true, "an ordinary user's process, without capabilities"
	case sets[0]&needless != 0:
		f.Detail = fmt.Sprintf("has %d capabilities that it does not need", bits.OnesCount64(sets[0]&needless))
	default:
		f.InForce, f.Detail = true, fmt.Sprintf("has %d of %d capabilities, and cannot get the others", bits.OnesCount64(sets[0]), bits.OnesCount64(can))
		if sets[1]&needless != 0 {
			f.Detail = fmt.Sprintf("has %d of %d capabilities", bits.OnesCount64(sets[0]), bits.OnesCount64(can))
		}
	}
	return f
}
