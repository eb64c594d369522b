package jail

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Fact is one property of a running jail, as seen from outside.
type Fact struct {
	Name    string
	InForce bool
	// Detail says what was found.
	Detail string
	// Optional facts are those that the host may not permit: a jail without
	// them is still one.
	Optional bool
}

// ErrOpen: a running process is not confined as it should be.
var ErrOpen = errors.New("the jail has a gap")

// maxProcFile bounds what is read of a file in /proc.
const maxProcFile = 1 << 20

// Verify reads back from /proc what confines the process. The error, which
// wraps ErrOpen, names the first fact that is not as it should be; the facts are
// returned also then. The process must have installed filters of its own before,
// if any, for them to be counted.
func (p *Process) Verify() ([]Fact, error) {
	if p.open {
		return []Fact{{Name: "jail", Detail: "switched off", Optional: true}}, nil
	}
	v := verifier{dir: "/proc/" + strconv.Itoa(p.PID), p: p}
	v.status, v.err = readStatus(v.dir + "/status")
	for _, check := range []func() Fact{
		v.root, v.mounts, v.namespaces, v.user, v.capabilities, v.privileges, v.filters, v.landlock, v.network, v.limits, v.environment, v.starter, v.group,
	} {
		f := check()
		v.facts = append(v.facts, f)
		if !f.InForce && !f.Optional && v.err == nil {
			v.err = fmt.Errorf("%s: %s", f.Name, f.Detail)
		}
	}
	if v.err != nil {
		return v.facts, fmt.Errorf("%w: %w", ErrOpen, v.err)
	}
	return v.facts, nil
}

type verifier struct {
	dir    string
	p      *Process
	status map[string]string
	facts  []Fact
	err    error
}

func fact(name string, err error, format string, args ...any) Fact {
	if err != nil {
		return Fact{Name: name, Detail: err.Error()}
	}
	return Fact{Name: name, InForce: true, Detail: fmt.Sprintf(format, args...)}
}

// root checks that the process's root directory is not the host's and holds
// nothing that was not put there.
func (v *verifier) root() Fact {
	var own, host unix.Stat_t
	err := unix.Stat(v.dir+"/root", &own)
	if err == nil {
		err = unix.Stat("/", &host)
	}
	if err == nil && own.Dev == host.Dev && own.Ino == host.Ino {
		err = errors.New("it is the host's")
	}
	var names []string
	if err == nil {
		var list []fs.DirEntry
		list, err = os.ReadDir(v.dir + "/root")
		for _, e := range list {
			names = append(names, e.Name())
			if !slices.Contains(v.p.entries, e.Name()) {
				err = fmt.Errorf("it holds /%s", e.Name())
			}
		}
	}
	return fact("root", err, "own, with %s", strings.Join(names, " "))
}

// mounts checks that nothing is writable or holds set-user-ID programs and
// devices, but what was asked for.
func (v *verifier) mounts() Fact {
	b, err := readBounded(v.dir + "/mountinfo")
	n, writable := 0, 0
	for line := range strings.Lines(b) {
		// ID, parent, device, root, mount point, options (proc(5)).
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		n++
		point, options := f[4], strings.Split(f[5], ",")
		device := point == "/dev" || point == "/dev/kvm"
		if slices.Contains(options, "rw") {
			writable++
			if !device && point != "/proc" && !v.p.mayWrite(point) {
				err = fmt.Errorf("%s is writable", point)
			}
		}
		if !slices.Contains(options, "nosuid") || !slices.Contains(options, "nodev") && !device {
			err = fmt.Errorf("%s may hold devices or set-user-ID programs", point)
		}
	}
	if err == nil && n == 0 {
		err = errors.New("none seen")
	}
	return fact("mounts", err, "%d, of which %d writable", n, writable)
}

// mayWrite reports whether a mount point belongs to a writable share.
func (p *Process) mayWrite(point string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for target, e := range p.shown {
		if point == target || strings.HasPrefix(point, target+"/") {
			return e.mayWrite(point == target)
		}
	}
	return false
}

func (v *verifier) namespaces() Fact {
	names := []string{"user", "mnt", "pid", "ipc", "uts", "net", "cgroup"}
	var err error
	for _, name := range names {
		theirs, e := os.Readlink(v.dir + "/ns/" + name)
		ours, e2 := os.Readlink("/proc/self/ns/" + name)
		if e = errors.Join(e, e2); e != nil {
			err = e
		} else if theirs == ours {
			err = fmt.Errorf("the %s namespace is the host's", name)
		}
	}
	return fact("namespaces", err, "own %s", strings.Join(names, " "))
}

func (v *verifier) user() Fact {
	id := v.p.identity
	var err error
	for name, want := range map[string]uint32{"Uid": id.uid, "Gid": id.gid} {
		for field := range strings.FieldsSeq(v.status[name]) {
			if field != strconv.FormatUint(uint64(want), 10) {
				err = fmt.Errorf("%s is %s, not %d", name, v.status[name], want)
			}
		}
	}
	if id.root && strings.TrimSpace(v.status["Groups"]) != "" {
		err = fmt.Errorf("it is in groups %s", v.status["Groups"])
	}
	b, e := readBounded(v.dir + "/uid_map")
	if e != nil {
		err = e
	}
	if f := strings.Fields(b); err == nil && !id.every && (len(f) != 3 || f[2] != "1") {
		err = fmt.Errorf("its user namespace holds more than one user: %q", b)
	}
	if id.every {
		return fact("user", err, "%d, in a user namespace with all users, for the shares", id.uid)
	}
	switch c := v.p.claim; {
	case c == nil: // its starter's
	case c.file == nil:
		return fact("user", err, "%d, the only one in its user namespace, perhaps also another jail's: %s", id.uid, c.why)
	default:
		return fact("user", err, "%d, no other jail's, the only one in its user namespace", id.uid)
	}
	return fact("user", err, "%d, the only one in its user namespace", id.uid)
}

func (v *verifier) capabilities() Fact {
	var err error
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		mask, e := strconv.ParseUint(v.status[set], 16, 64)
		if e != nil {
			err = fmt.Errorf("%s: %w", set, e)
		} else if mask&^v.p.identity.caps != 0 {
			err = fmt.Errorf("%s is %s", set, v.status[set])
		}
	}
	if n := bits.OnesCount64(v.p.identity.caps); n > 0 {
		return fact("capabilities", err, "%d for files, in its own user namespace only", n)
	}
	return fact("capabilities", err, "none, and none to be had")
}

func (v *verifier) privileges() Fact {
	var err error
	if v.status["NoNewPrivs"] != "1" {
		err = errors.New("execve may grant some")
	}
	return fact("new privileges", err, "impossible")
}

func (v *verifier) filters() Fact {
	var err error
	if v.status["Seccomp"] != "2" {
		err = errors.New("every system call is allowed")
	}
	n, ok := v.status["Seccomp_filters"]
	if !ok { // before Linux 5.10
		n = "unknown number of"
	} else if k, e := strconv.Atoi(n); err == nil && (e != nil || k < v.p.filters) {
		err = fmt.Errorf("%s filters, not %d", n, v.p.filters)
	}
	if c := v.p.calls; c != nil {
		return fact("system calls", err, "seccomp, %s filters: %d allowed, others fail and are logged", n, len(c.names))
	}
	return fact("system calls", err, "seccomp, %s filters: %d forbidden", n, len(forbidden))
}

// network looks through the process's own view of its network namespace.
func (v *verifier) network() Fact {
	b, err := readBounded(v.dir + "/net/dev")
	for line := range strings.Lines(b) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
			err = fmt.Errorf("it has the interface %s", strings.TrimSpace(name))
		}
	}
	return fact("network", err, "none")
}

func (v *verifier) limits() Fact {
	b, err := readBounded(v.dir + "/limits")
	core := false
	for line := range strings.Lines(b) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			f := strings.Fields(rest)
			core = len(f) >= 2 && f[0] == "0" && f[1] == "0"
		}
	}
	if err == nil && !core {
		err = errors.New("it may dump core")
	}
	return fact("limits", err, "no core dump; files, threads, locked memory and queues bounded")
}

func (v *verifier) environment() Fact {
	b, err := readBounded(v.dir + "/environ")
	for variable := range strings.SplitSeq(b, "\x00") {
		if variable != "" && !slices.Contains(environment, variable) {
			name, _, _ := strings.Cut(variable, "=")
			err = fmt.Errorf("it holds %s", name)
		}
	}
	return fact("environment", err, "empty but for the loader's path")
}

func (v *verifier) group() Fact {
	g := v.p.group
	if g == nil {
		return Fact{Name: "control group", Optional: true, Detail: v.p.groupless}
	}
	b, err := readBounded(v.dir + "/cgroup")
	if err == nil {
		err = g.Holds(b)
	}
	f := fact("control group", err, "%s", g)
	f.Optional = true
	return f
}

// readStatus reads the fields of /proc/PID/status.
func readStatus(path string) (map[string]string, error) {
	b, err := readBounded(path)
	m := map[string]string{}
	for line := range strings.Lines(b) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			m[name] = strings.TrimSpace(value)
		}
	}
	return m, err
}

func readBounded(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcFile))
	return string(b), err
}
