package jail

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/seccomp"
)

// Calls are the system calls that one program may make. All others fail, and the kernel logs that they were tried
// (audit record type 1326: in the kernel's log, or the audit daemon's).
//
// A call that is not on the list fails with EPERM; one that is newer than every call on it, with ENOSYS, as on a kernel
// that has not got it, which programs and C libraries are prepared for. It does not end the process: a version of the
// program that tries something new at its start, and can do without, would end with it.
type Calls struct {
	allow, quiet seccomp.Filter
	names        []string
}

// ParseCalls reads a list of calls. It is text; # begins a comment, and a line is one of
//
//	group REASON               what the calls that follow are for
//	NAME [CONDITION...]        the call is allowed, if all conditions hold
//	refuse ERROR NAME          the call fails with ENOSYS or EPERM, and that is not logged: the program is known to try it
//
// A call may have several lines, of which one must fit. A condition is argN=VALUE or argN&MASK=VALUE, N from 0, the numbers as Go writes
// them. Without a mask the lower 32 bits are compared, which are all that the kernel takes of an int.
//
// What no jailed program may do, whatever it is, cannot be allowed.
func ParseCalls(text string) (*Calls, error) {
	c := new(Calls)
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, DefaultErrnoRet: number(unix.EPERM),
		Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
	}
	quiet := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	grouped, plain := false, map[string]bool{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := func() error {
			switch {
			case words[0] == "group":
				grouped = true
				if len(words) == 1 {
					return errors.New("a group without a reason")
				}
				return nil
			case !grouped:
				return errors.New("a call before the first group")
			case words[0] == "refuse":
				return refuse(quiet, words[1:])
			}
			rule, err := allow(words)
			if err != nil {
				return err
			}
			name := words[0]
			if plain[name] {
				return fmt.Errorf("%s is allowed already, whatever its arguments are", name)
			}
			if len(rule.Args) == 0 {
				if slices.Contains(c.names, name) {
					return fmt.Errorf("%s is allowed already, with conditions", name)
				}
				plain[name] = true
			}
			if !slices.Contains(c.names, name) {
				c.names = append(c.names, name)
			}
			profile.Syscalls = append(profile.Syscalls, rule)
			return nil
		}(); err != nil {
			return nil, fmt.Errorf("list of system calls, line %d: %w", n, err)
		}
	}
	for _, name := range []string{"execve", "seccomp", "write", "exit_group"} {
		if !plain[name] {
			return nil, fmt.Errorf("list of system calls: without %s no program can be started under it", name)
		}
	}
	var err error
	if c.allow, err = seccomp.Compile(profile, runtime.GOARCH); err != nil {
		return nil, err
	}
	if c.quiet, err = seccomp.Compile(quiet, runtime.GOARCH); err != nil {
		return nil, err
	}
	return c, nil
}

// Names are the calls that are allowed, some of them with conditions.
func (c *Calls) Names() []string { return slices.Clone(c.names) }

func number(e unix.Errno) *uint {
	n := uint(e)
	return &n
}

// refuse reads what follows "refuse".
func refuse(profile *specs.LinuxSeccomp, words []string) error {
	errs := map[string]unix.Errno{"ENOSYS": unix.ENOSYS, "EPERM": unix.EPERM}
	if len(words) != 2 || errs[words[0]] == 0 || !seccomp.Known(words[1]) {
		return errors.New("want refuse, ENOSYS or EPERM, and the name of a system call")
	}
	profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{
		Names: words[1:], Action: specs.ActErrno, ErrnoRet: number(errs[words[0]]),
	})
	return nil
}

// allow reads the line of an allowed call.
func allow(words []string) (specs.LinuxSyscall, error) {
	name := words[0]
	rule := specs.LinuxSyscall{Names: words[:1], Action: specs.ActAllow}
	switch {
	case !seccomp.Known(name):
		return rule, fmt.Errorf("there is no system call %q", name)
	case slices.Contains(forbidden, name), name == "clone3":
		return rule, fmt.Errorf("%s is forbidden to every jailed program", name)
	}
	for _, w := range words[1:] {
		arg, err := condition(w)
		if err != nil {
			return rule, err
		}
		if slices.ContainsFunc(rule.Args, func(a specs.LinuxSeccompArg) bool { return a.Index == arg.Index }) {
			return rule, fmt.Errorf("%q is a second condition on one argument: they need a mask together, or two lines", w)
		}
		rule.Args = append(rule.Args, arg)
	}
	if name == "clone" && !slices.ContainsFunc(rule.Args, threadsOnly) {
		return rule, fmt.Errorf("clone must be restricted to threads without namespaces of their own: arg0&%#x=%#x, or a mask with more", threadMask, unix.CLONE_THREAD)
	}
	return rule, nil
}

// condition reads argN=VALUE or argN&MASK=VALUE.
func condition(word string) (specs.LinuxSeccompArg, error) {
	arg := specs.LinuxSeccompArg{Op: specs.OpMaskedEqual, Value: 1<<32 - 1}
	wrong := conditionError(word)
	left, right, ok := strings.Cut(word, "=")
	left, ok2 := strings.CutPrefix(left, "arg")
	if !ok || !ok2 {
		return arg, wrong
	}
	index, mask, masked := strings.Cut(left, "&")
	i, err := strconv.ParseUint(index, 10, 8)
	if err != nil || i > 5 {
		return arg, wrong
	}
	arg.Index = uint(i)
	if masked {
		if arg.Value, err = strconv.ParseUint(mask, 0, 64); err != nil {
			return arg, wrong
		}
	}
	if arg.ValueTwo, err = strconv.ParseUint(right, 0, 64); err != nil || arg.ValueTwo&^arg.Value != 0 {
		return arg, wrong
	}
	return arg, nil
}

type conditionError string

func (e conditionError) Error() string {
	return fmt.Sprintf("%q is no condition: want argN=VALUE or argN&MASK=VALUE", string(e))
}

// threadMask are the flags of clone(2) that decide: it is a thread, and has no namespace of its own.
var threadMask = func() uint64 {
	mask := uint64(unix.CLONE_THREAD)
	for _, flag := range newNamespaces {
		mask |= flag
	}
	return mask
}()

// threadsOnly reports whether a condition lets no clone(2) pass that makes a process or a namespace.
func threadsOnly(a specs.LinuxSeccompArg) bool {
	return a.Index == 0 && a.Value&threadMask == threadMask && a.ValueTwo&threadMask == unix.CLONE_THREAD
}
