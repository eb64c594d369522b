package seccomp

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// check reports what in a profile has no meaning here.
func check(s *specs.LinuxSeccomp) error {
	if s.DefaultAction == "" {
		return errors.New("defaultAction is missing")
	}
	if _, err := action(s.DefaultAction, s.DefaultErrnoRet); err != nil {
		return fmt.Errorf("defaultAction: %w", err)
	}
	for _, a := range s.Architectures {
		if !known[a] {
			return fmt.Errorf("unknown architecture %q (SCMP_ARCH_X86_64 is one)", a)
		}
	}
	if _, err := flags(s.Flags); err != nil {
		return err
	}
	if s.ListenerPath != "" {
		return errors.New("listenerPath is set, but there is nothing in the guest that could listen")
	}
	if len(s.Syscalls) > maxRules {
		return fmt.Errorf("it has %d rules, at most %d are allowed", len(s.Syscalls), maxRules)
	}
	names := 0
	for i := range s.Syscalls {
		r := &s.Syscalls[i]
		if names += len(r.Names); names > maxNames {
			return fmt.Errorf("it names more than %d system calls", maxNames)
		}
		if err := checkRule(r); err != nil {
			return fmt.Errorf("rule %d%s: %w", i, first(r.Names), err)
		}
	}
	return nil
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.40s)", names[0])
}

func checkRule(r *specs.LinuxSyscall) error {
	for _, n := range r.Names {
		if n == "" {
			return errors.New("the name of a system call is empty")
		}
	}
	if _, err := action(r.Action, r.ErrnoRet); err != nil {
		return err
	}
	if len(r.Args) > maxArgs {
		return fmt.Errorf("it has %d conditions, at most %d are allowed", len(r.Args), maxArgs)
	}
	for _, a := range r.Args {
		if a.Index > 5 {
			return fmt.Errorf("there is no argument %d: the index is 0 to 5", a.Index)
		}
		switch a.Op {
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual:
		default:
			return fmt.Errorf("unknown operator %q (SCMP_CMP_EQ is one)", a.Op)
		}
	}
	return nil
}

// Results of a filter, from <linux/seccomp.h>.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

const (
	eperm  = 1
	enosys = 38
	// maxErrno is the largest that the kernel returns to a process.
	maxErrno = 4095
)

// action gives the result that the filter returns.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(eperm)
	if errno != nil {
		switch a {
		case specs.ActErrno, specs.ActTrace:
		default:
			return 0, fmt.Errorf("action %s has no errnoRet (SCMP_ACT_ERRNO and SCMP_ACT_TRACE have)", a)
		}
		if *errno > maxErrno {
			return 0, fmt.Errorf("errnoRet %d is above %d", *errno, maxErrno)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("action %s is not supported: there is nothing in the guest that could be notified", a)
	}
	return 0, fmt.Errorf("unknown action %q (SCMP_ACT_ERRNO is one)", a)
}

// Flags of seccomp(2).
const (
	flagLog       = 2
	flagSpecAllow = 4
)

// flags gives the argument of seccomp(2). A profile that says nothing leaves
// the processor's speculation as it is, like runc since 1.1: the mitigation that
// a filter otherwise switches on costs much and is of no use in a VM of one's own.
func flags(list []specs.LinuxSeccompFlag) (uint32, error) {
	if list == nil {
		return flagSpecAllow, nil
	}
	var f uint32
	for _, name := range list {
		switch name {
		case specs.LinuxSeccompFlagLog:
			f |= flagLog
		case specs.LinuxSeccompFlagSpecAllow:
			f |= flagSpecAllow
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// The process has one thread when its filter is installed.
		case specs.LinuxSeccompFlagWaitKillableRecv:
			return 0, fmt.Errorf("flag %s is not supported: it belongs to SCMP_ACT_NOTIFY", name)
		default:
			return 0, fmt.Errorf("unknown flag %q (SECCOMP_FILTER_FLAG_LOG is one)", name)
		}
	}
	return f, nil
}
