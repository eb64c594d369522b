package qemu

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"manis/vmm/jail"
	"manis/vmm/jail/jailtest"
)

// tryArg makes the test's program the prisoner, which tries system calls. What it is to try follows.
const tryArg = "try-system-calls"

func init() {
	if len(os.Args) > 1 && os.Args[1] == tryArg {
		tryCalls(os.Args[2:])
		os.Exit(0)
	}
}

// newest is above all numbers of calls of this architecture: the highest of Linux 6.18 is 470.
const newest = 600

// tryCalls makes system calls, each given as numbers with a comma between, the call's and its arguments', of which those
// that are missing are -1, and writes the errors.
func tryCalls(calls []string) {
	found := map[string]int{}
	for _, c := range calls {
		values := [7]uintptr{}
		for i := range values {
			values[i] = ^uintptr(0)
		}
		for i, v := range strings.Split(c, ",") {
			n, _ := strconv.ParseUint(v, 0, 64)
			values[i] = uintptr(n)
		}
		r, _, errno := unix.RawSyscall6(values[0], values[1], values[2], values[3], values[4], values[5], values[6])
		if r == 0 && errno == 0 && (values[0] == unix.SYS_FORK || values[0] == unix.SYS_VFORK || values[0] == unix.SYS_CLONE) {
			unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		}
		found[c] = int(errno)
	}
	out, _ := json.Marshal(found)
	unix.Write(1, out) // os.Stdout may want calls that a list has not
}

// outcomes has a prisoner under a list of calls try some.
func outcomes(t *testing.T, list *jail.Calls, calls []string) map[string]int {
	t.Helper()
	p, r := jailtest.Start(t, func(c *jail.Config) { c.Calls = list }, append([]string{tryArg}, calls...)...)
	// One that waits for ever is one that is not refused.
	patience := time.AfterFunc(time.Minute, func() { p.Signal(unix.SIGKILL) })
	defer patience.Stop()
	out := jailtest.Output(t, p, r)
	found := map[string]int{}
	if err := json.Unmarshal(out, &found); err != nil || len(found) != len(calls) {
		t.Fatalf("the prisoner has given %d of %d answers, %v: %.300s", len(found), len(calls), err, out)
	}
	return found
}

// Every call that is not on a list is refused by the kernel, whatever its number, and every one on it is not.
func TestCallsByNumber(t *testing.T) {
	for name, list := range map[string]func() (*jail.Calls, error){"QEMU": calls, "TPM": tpmCalls} {
		t.Run(name, func(t *testing.T) {
			list, err := list()
			if err != nil {
				t.Fatal(err)
			}
			names := list.Names()
			var tried []string
			for n := range newest {
				// Uprobes' trampolines end in these (Linux 6.14, 6.18). No filter is asked, and they end who calls them elsewhere.
				if n == 335 || n == 336 {
					continue
				}
				switch arch.X86_64.SyscallNumbers[n] {
				// Their end is the prisoner's, or they take no argument that is wrong.
				case "exit", "exit_group", "rt_sigreturn":
				// -1 is no operation, which is ENOSYS. The prisoner could not run without it.
				case "futex":
				default:
					tried = append(tried, strconv.Itoa(n))
				}
			}
			found := outcomes(t, list, tried)
			refused := 0
			for n, errno := range found {
				number, _ := strconv.Atoi(n)
				name, known := arch.X86_64.SyscallNumbers[number]
				no := errno == int(unix.EPERM) || errno == int(unix.ENOSYS)
				switch {
				case !slices.Contains(names, name) || conditional[name]:
					if refused++; !no {
						t.Errorf("%s (%s): error %d, want that it is refused", n, name, errno)
					}
				case no && known:
					t.Errorf("%s (%s): it is on the list, and refused with %d", n, name, errno)
				}
			}
			if refused < 200 {
				t.Errorf("only %d calls were refused", refused)
			}
		})
	}
}

// conditional are the calls that are allowed with some arguments only, of which -1 is none.
var conditional = map[string]bool{
	"arch_prctl": true, "clone": true, "ioctl": true, "kill": true, "prctl": true, "prlimit64": true, "tgkill": true, "socketpair": true,
	"getsockopt": true, "setsockopt": true, "fcntl": true,
}

// The arguments of calls decide where a list says so.
func TestCallsByArgument(t *testing.T) {
	list, err := calls()
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]string{
		"a process":                    "56,17",
		"a process that shares memory": "56,0x4111",
		"a thread with namespaces":     "56,0x103d0f00",
		"typing into a terminal":       "16,0,0x5412",
		"a terminal of its own":        "16,0,0x540e",
		"a request to a disk's SCSI":   "16,0,0x2285",
		"making a tap device":          "16,0,0x400454ca",
		"an internet socket pair":      "53,2,1,0",
		"a filter for sockets":         "54,0,1,26",
		"options of IP":                "54,0,0,1",
		"raising a limit":              "302,0,4,1,0",
		"another's limit":              "302,2,4,0,0",
		"signals to others":            "62,2,0",
		"signals to a group":           "62,0,0",
		"signals to threads of others": "234,2,2,0",
		"owner of a descriptor":        "72,0,8,1",
		"leases":                       "72,0,0x400,0",
		"a parent-death signal":        "157,1,0,0,0,0",
		"dumping":                      "157,4,1,0,0,0",
		"keeping capabilities":         "157,8,1,0,0,0",
		"ambient capabilities":         "157,47,4,0,0,0",
		"a tracer":                     "157,0x59616d61,1,0,0,0",
	}
	allowed := map[string]string{
		"is it a terminal":     "16,99,0x5401",
		"KVM":                  "16,99,0xae01",
		"KVM, a negative int":  "16,99,0xffffffffc008ae05",
		"a tap's offload":      "16,99,0x400454d0",
		"a pair of Unix":       "53,1,99,0",
		"reading a limit":      "302,0,7,0,0",
		"a signal to itself":   "62,1,0",
		"a descriptor's flags": "72,99,3",
		"the name of a thread": "157,15,0,0,0,0",
	}
	var tried []string
	for _, set := range []map[string]string{refused, allowed} {
		for _, c := range set {
			tried = append(tried, c)
		}
	}
	found := outcomes(t, list, tried)
	for what, c := range refused {
		if found[c] != int(unix.EPERM) {
			t.Errorf("%s: error %d, want EPERM", what, found[c])
		}
	}
	for what, c := range allowed {
		if found[c] == int(unix.EPERM) || found[c] == int(unix.ENOSYS) {
			t.Errorf("%s: refused with %d", what, found[c])
		}
	}
}

// A call that is refused quietly says so with the error on its line; others are in the kernel's log.
func TestCallsRefusedQuietly(t *testing.T) {
	list, err := calls()
	if err != nil {
		t.Fatal(err)
	}
	found := outcomes(t, list, []string{"435", "425", "999"})
	for c, want := range map[string]unix.Errno{"435": unix.ENOSYS, "425": unix.EPERM, "999": unix.ENOSYS} {
		if found[c] != int(want) {
			t.Errorf("%s: error %d, want %d", c, found[c], want)
		}
	}
}
