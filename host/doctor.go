package host

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/host/tsc"
	"manis/vmm/qemu"
)

// Status says whether a fact is well.
type Status string

const (
	OK   Status = "ok"
	Warn Status = "warn" // VMs run, but something is slower or missing
	Fail Status = "fail" // VMs do not run
)

// Check is one fact about this host.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Advice is what to do; empty when all is well.
	Advice string `json:"advice,omitempty"`
}

// Subject is what Examine looks at.
type Subject struct {
	Accelerators
	// Initrd is the guest's initial file system, beside Accelerators.Kernel.
	Initrd string
	// Dirs maps what a directory is for, like "images", to its path, which need
	// not exist yet.
	Dirs []Dir
}

// Dir is a directory that needs space.
type Dir struct {
	Name, Path string
	// Volumes is set for a directory whose files carry owners for guests in
	// extended attributes.
	Volumes bool
}

// queryTime bounds the questions to QEMU.
const queryTime = 30 * time.Second

// Examine looks at everything, in an order for reading. It starts QEMU a few
// times and tries KVM anew, whatever is remembered; ctx ends it early with
// what was found. It changes nothing but the cache.
func Examine(ctx context.Context, s Subject) []Check {
	checks := []Check{processorCheck(), memoryCheck()}
	checks = append(checks, s.monitor(ctx)...)
	checks = append(checks, s.guest()...)
	checks = append(checks, groupCheck())
	for _, d := range s.Dirs {
		checks = append(checks, dirCheck(d))
	}
	return append(checks, toolCheck("mkfs.ext4", "e2fsprogs", "containers that write to disk"), filesCheck())
}

func ok(name, format string, args ...any) Check {
	return Check{Name: name, Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func processorCheck() Check {
	const name = "processor"
	c := ok(name, "%d × %s", runtime.NumCPU(), model())
	if runtime.GOARCH != "amd64" {
		return Check{name, Fail, c.Detail, "VMs need an x86-64 host"}
	}
	khz, declared := tsc.Declared()
	if !declared {
		var err error
		if khz, err = tsc.Measure(9 * time.Millisecond); err != nil {
			return Check{name, Warn, fmt.Sprintf("%s, %v", c.Detail, err),
				"under emulation, guests have to measure their clock themselves, which may hang on a busy host"}
		}
	}
	c.Detail += fmt.Sprintf(", time stamp counter at %.3f MHz", float64(khz)/1000)
	return c
}

// model is the processor's name.
func model() string {
	for line := range strings.Lines(cpuinfo()) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// leastMemory is what one small VM takes with its monitor.
const leastMemory = 384 << 20

func memoryCheck() Check {
	const name = "memory"
	var total, available uint64
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Check{name, Warn, err.Error(), "mount /proc"}
	}
	for line := range strings.Lines(string(b)) {
		var kb uint64
		if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kb); n == 1 {
			total = kb << 10
		}
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			available = kb << 10
		}
	}
	c := ok(name, "%s available of %s", size(available), size(total))
	if available < leastMemory {
		c.Status, c.Advice = Warn, fmt.Sprintf("a small VM takes %s: free some memory, or run fewer VMs", size(leastMemory))
	}
	return c
}

// monitor checks QEMU, its jail and its accelerators.
func (s *Subject) monitor(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	in, err := s.Driver.Installation()
	if err != nil {
		return []Check{{"qemu", Fail, err.Error(), "install QEMU: on Debian and Ubuntu, apt install qemu-system-x86"}}
	}
	namespaces := namespaceCheck()
	a, err := s.Driver.Abilities(ctx)
	if err != nil {
		status := namespaces
		if namespaces.Status == OK {
			status = Check{"jail", Fail, err.Error(), "manis runs no VMM that it cannot confine; the message says what is missing"}
		}
		return []Check{ok("qemu", "%s", in.Closure.Program), status}
	}
	return append([]Check{qemuCheck(in, a), namespaces, jailCheck(a)}, s.accelerators(ctx, a)...)
}

func qemuCheck(in *qemu.Installation, a qemu.Abilities) Check {
	c := ok("qemu", "%s at %s", a.Version, in.Closure.Program)
	tested := fmt.Sprintf("tested are %d.%d to %d.%d", qemu.OldestTested[0], qemu.OldestTested[1], qemu.NewestTested[0], qemu.NewestTested[1])
	switch {
	case len(a.Missing) > 0:
		c.Status, c.Detail = Fail, c.Detail+", without "+strings.Join(a.Missing, ", ")
		c.Advice = "install a QEMU with all devices for x86-64 (Debian: qemu-system-x86)"
	case a.Tested() < 0:
		c.Status, c.Advice = Warn, "this version is older than the tests know ("+tested+"): upgrade QEMU if VMs do not start"
	case a.Tested() > 0:
		c.Status, c.Advice = Warn, "this version is newer than the tests know ("+tested+"): upgrade manis if VMs do not start"
	}
	return c
}

func jailCheck(a qemu.Abilities) Check {
	n := 0
	for _, f := range a.Jail {
		if f.InForce {
			n++
		}
	}
	return ok("jail", "%d confinements in force, read back from a running QEMU", n)
}

func (s *Subject) accelerators(ctx context.Context, a qemu.Abilities) []Check {
	kvm := Check{Name: "kvm", Status: Warn}
	if s.Kernel == "" || !exists(s.Kernel) {
		kvm.Detail, kvm.Advice = "not tried without a guest kernel", "make build"
	} else {
		s.Forget()
		t, err := s.KVM(ctx)
		switch {
		case err != nil:
			kvm.Detail, kvm.Advice = err.Error(), "see above"
		case t.Works:
			kvm = ok("kvm", "%s", t.Detail)
		default:
			kvm.Detail, kvm.Advice = t.Detail, t.Advice
		}
	}
	tcg := ok("tcg", "emulation is available")
	if !a.TCG {
		tcg = Check{"tcg", Warn, "this QEMU cannot emulate", "install the part of QEMU that holds accel-tcg (Fedora: qemu-system-x86-core)"}
		if kvm.Status != OK {
			tcg.Status = Fail
		}
	}
	return []Check{kvm, tcg}
}

// guest checks the kernel and the initial file system.
func (s *Subject) guest() []Check {
	var checks []Check
	for name, path := range map[string]string{"guest kernel": s.Kernel, "guest initramfs": s.Initrd} {
		c := Check{name, Fail, "not found", "build the guest image: make build"}
		if path != "" {
			if d, n, err := digest(path); err != nil {
				c.Detail = err.Error()
			} else {
				c = ok(name, "%s, %s, sha256:%s", path, size(uint64(n)), d)
			}
		}
		checks = append(checks, c)
	}
	if checks[0].Name != "guest kernel" {
		checks[0], checks[1] = checks[1], checks[0]
	}
	return checks
}

// namespaceCheck says whether this user may make user namespaces.
func namespaceCheck() Check {
	const name = "namespaces"
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	most := read("/proc/sys/user/max_user_namespaces")
	root := os.Geteuid() == 0
	switch {
	case most == "0":
		return Check{name, Fail, "user namespaces are switched off", "sysctl user.max_user_namespaces=10000"}
	case !root && read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		return Check{name, Fail, "user namespaces are for root only", "sysctl kernel.unprivileged_userns_clone=1, or run manis as root"}
	case !root && read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return Check{name, Warn, "AppArmor restricts user namespaces of ordinary users",
			"if VMs do not start: an AppArmor profile for manis with the rule userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"}
	}
	if root {
		return ok(name, "at most %s of users", most)
	}
	return ok(name, "at most %s of users, for ordinary users as well", most)
}

// filesCheck compares the limit of descriptors with what a monitor with shares
// and many connections may need.
func filesCheck() Check {
	const name, enough = "open files", 4096
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return Check{name, Warn, err.Error(), ""}
	}
	c := ok(name, "at most %d", l.Max)
	if l.Max < enough {
		c.Status, c.Advice = Warn, fmt.Sprintf("raise the hard limit (ulimit -Hn) to %d for volumes with many open files", enough)
	}
	return c
}

// size writes bytes for people.
func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
