package validation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options are what to run and to compare with.
type Options struct {
	// Top is the directory of Manis's source.
	Top string
	// Runtime is the path of the runtime, Name the list's for it.
	Runtime, Name string
	// Tests are run; all of them when empty.
	Tests []string
	// Keep is a directory for what the tests print; empty: none.
	Keep string
	Log  io.Writer
}

// ErrUnsuitable is for a machine that the suite cannot be run on.
var ErrUnsuitable = errors.New("the validation suite cannot be run here")

// testTime bounds a test. One of them makes 17 containers.
const testTime = 3 * time.Minute

// Run runs the suite and fails when a verdict is not the list's.
func Run(ctx context.Context, o Options) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it makes control groups and namespaces, which needs root", ErrUnsuitable)
	}
	text, err := os.ReadFile(filepath.Join(o.Top, "docs/VALIDATION.md"))
	if err != nil {
		return err
	}
	list, err := ParseList(string(text))
	if err != nil {
		return fmt.Errorf("docs/VALIDATION.md: %w", err)
	}
	s, err := build(ctx, o.Top)
	if err != nil {
		return fmt.Errorf("build the suite: %w", err)
	}
	tests := s.tests
	if len(o.Tests) > 0 {
		tests = o.Tests
		for _, name := range tests {
			if !slices.Contains(s.tests, name) {
				return fmt.Errorf("the suite has no test %s", name)
			}
		}
	} else {
		for name := range list {
			if !slices.Contains(tests, name) {
				return fmt.Errorf("docs/VALIDATION.md lists %s, which the suite does not have", name)
			}
		}
	}
	r, err := newRunner(s, o)
	if err != nil {
		return err
	}
	defer r.close()
	if groups := slices.DeleteFunc(slices.Clone(tests), func(n string) bool { return !ofGroups(n) }); len(groups) > 0 && unified() {
		fmt.Fprintf(o.Log, "left out: %s: the suite knows version 1 of control groups only, and this host has version 2\n", strings.Join(groups, ", "))
		tests = slices.DeleteFunc(slices.Clone(tests), ofGroups)
	}
	r.all(ctx, tests)
	// A machine that is busy can make a test's waiting times too short: what differs is tried again, alone.
	for range 2 {
		for _, name := range tests {
			if ctx.Err() == nil && len(compare(list, o.Name, map[string]Verdict{name: r.verdicts[name]})) > 0 {
				r.one(ctx, name)
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	count := make(map[Verdict]int)
	for _, v := range r.verdicts {
		count[v]++
	}
	fmt.Fprintf(o.Log, "%s: %d pass, %d fail\n", o.Name, count[Passes], count[Fails])
	if differ := compare(list, o.Name, r.verdicts); len(differ) > 0 {
		return fmt.Errorf("docs/VALIDATION.md is not what was found:\n  %s", strings.Join(differ, "\n  "))
	}
	return nil
}

// ofGroups recognises the tests that look at control groups of the host. Most use the same one, so they
// cannot be run at the same time.
func ofGroups(name string) bool {
	return strings.HasPrefix(name, "linux_cgroups_") || name == "delete_resources" || name == "delete_only_create_resources"
}

func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// runner runs tests in directories of its own.
type runner struct {
	Options
	suite *suite
	dir   string
	env   []string

	mu       sync.Mutex
	verdicts map[string]Verdict
}

func newRunner(s *suite, o Options) (*runner, error) {
	// Short: a socket's address holds 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "manis-oci-")
	if err != nil {
		return nil, err
	}
	r := &runner{Options: o, suite: s, dir: dir, verdicts: make(map[string]Verdict)}
	tmp := filepath.Join(dir, "tmp")
	// A container's user may not be the one that has made its root.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(tmp, 0o755)); err != nil {
		r.close()
		return nil, err
	}
	r.env = slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "MANIS_") && !strings.HasPrefix(e, "MANIS_GUEST=") || strings.HasPrefix(e, "TMPDIR=")
	})
	r.env = append(r.env, "RUNTIME="+o.Runtime, "TMPDIR="+tmp, "MANIS_ROOT="+dir+"/root", "MANIS_RUN="+dir+"/run", "MANIS_CONFIG="+dir+"/config")
	return r, nil
}

// close ends what failing tests have left running.
func (r *runner) close() {
	list := exec.Command(r.Runtime, "list", "-q")
	list.Env = r.env
	out, err := list.Output()
	if err == nil && r.Name != "runc" { // whose containers may be anybody's
		for id := range strings.FieldsSeq(string(out)) {
			remove := exec.Command(r.Runtime, "delete", "--force", id)
			remove.Env = r.env
			remove.Run()
		}
	}
	// Some tests make mounts that come out to the host; what is mounted is not to be removed.
	for _, point := range mountsBelow(r.dir) {
		unix.Unmount(point, unix.MNT_DETACH)
	}
	if left := mountsBelow(r.dir); len(left) > 0 {
		fmt.Fprintf(r.Log, "left as it is: %s, where %s is mounted\n", r.dir, left[0])
	} else if err := os.RemoveAll(r.dir); err != nil {
		fmt.Fprintln(r.Log, err)
	}
	// The suite's own control groups, whose parents runtimes leave.
	for _, name := range []string{"testdir/cgrouptest/container", "testdir/cgrouptest", "testdir", "cgrouptest"} {
		found, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
		for _, dir := range found {
			unix.Rmdir(dir)
		}
	}
}

// mountsBelow are the mount points in a directory, the last mounted first.
func mountsBelow(dir string) []string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{"something unknown"}
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		// The fifth field is the mount point (proc(5)). The names made here hold no escapes up to
		// where they differ.
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points)
	return points
}

// all runs tests on two threads: those of control groups one after the other.
func (r *runner) all(ctx context.Context, tests []string) {
	var groups, others []string
	for _, name := range tests {
		if ofGroups(name) {
			groups = append(groups, name)
		} else {
			others = append(others, name)
		}
	}
	next := make(chan string)
	go func() {
		defer close(next)
		for _, name := range others {
			next <- name
		}
	}()
	var wg sync.WaitGroup
	for _, first := range [][]string{groups, nil} {
		wg.Go(func() {
			for _, name := range first {
				r.one(ctx, name)
			}
			for name := range next {
				r.one(ctx, name)
			}
		})
	}
	wg.Wait()
}

func (r *runner) one(ctx context.Context, name string) {
	if ctx.Err() != nil {
		return
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.suite.dir, name))
	cmd.Dir = r.suite.dir
	cmd.Env = r.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	code := cmd.ProcessState.ExitCode()
	if err != nil && code == 0 && !errors.Is(err, exec.ErrWaitDelay) {
		code = -1
	}
	verdict, why := judge(string(out), code)
	if ctx.Err() != nil {
		verdict, why = Fails, fmt.Sprintf("it did not end within %v", testTime)
	}
	r.mu.Lock()
	_, again := r.verdicts[name]
	r.mu.Unlock()
	if r.Keep != "" && !again {
		for ending, text := range map[string]string{".tap": string(out), ".err": said.String()} {
			if err := os.WriteFile(filepath.Join(r.Keep, name+ending), []byte(text), 0o644); err != nil {
				fmt.Fprintln(r.Log, err)
			}
		}
	}
	line := fmt.Sprintf("%s %s (%.0f s)", name, verdict, time.Since(began).Seconds())
	if why != "" {
		line += ": " + why[:min(len(why), 160)]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verdicts[name] = verdict
	fmt.Fprintln(r.Log, line)
}
