// Package e2e tries the whole product as its users do: the built binary, real
// virtual machines, real images. Everything happens below one temporary
// root; after each test nothing of it may be left: no process, no socket, no
// container.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// top is the repository.
var top = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

var manisBinary = filepath.Join(top, "bin", "manis")

// commandTime bounds one command of a test; a start under emulation on a busy
// machine takes a few seconds.
const commandTime = 2 * time.Minute

// result is what a command did.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, clip(r.stdout), clip(r.stderr))
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:1000] + "\n...\n" + s[len(s)-1000:]
	}
	return s
}

// world is one installation's data: a root of its own.
type world struct {
	t    testing.TB
	root string
	run  string
	env  []string
}

// newWorld makes an empty installation. It is checked for leaks at the end of the
// test.
func newWorld(t testing.TB) *world {
	t.Helper()
	if _, err := os.Stat(manisBinary); err != nil {
		t.Skipf("no binary to test: %v (make build)", err)
	}
	// Short: a socket's address holds 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "manis-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run")}
	w.env = append(os.Environ(), "MANIS_ROOT="+w.root, "MANIS_RUN="+w.run, "XDG_CACHE_HOME="+cacheDir())
	t.Cleanup(func() {
		w.checkLeaks()
		os.RemoveAll(dir)
	})
	return w
}

// cacheDir is shared by all tests: probes and blank disks are made once.
func cacheDir() string {
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return os.TempDir()
	}
	return filepath.Join(home, ".cache")
}

// command returns manis with args, ready to start.
func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, manisBinary, args...)
	cmd.Env = w.env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// manis runs a command to its end.
func (w *world) manis(args ...string) result { return w.manisIn("", args...) }

// manisIn runs a command with an input.
func (w *world) manisIn(stdin string, args ...string) result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := w.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := result{stdout: out.String(), stderr: errs.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		w.t.Fatalf("manis %s: no end after %v\n%s", strings.Join(args, " "), commandTime, r)
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		w.t.Fatalf("manis %s: %v", strings.Join(args, " "), err)
	}
	if strings.Contains(r.stderr, "goroutine ") || strings.Contains(r.stderr, "panic:") {
		w.t.Errorf("manis %s panicked\n%s", strings.Join(args, " "), r)
	}
	return r
}

// ok runs a command that must succeed and returns its output without the last
// line end.
func (w *world) ok(args ...string) string {
	w.t.Helper()
	r := w.manis(args...)
	if r.code != 0 {
		w.t.Fatalf("manis %s: %s", strings.Join(args, " "), r)
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

// fails runs a command that must fail with a code and with words in its error.
func (w *world) fails(code int, words string, args ...string) {
	w.t.Helper()
	r := w.manis(args...)
	if r.code != code || !strings.Contains(r.stderr, words) {
		w.t.Errorf("manis %s: want exit %d and %q in the error, got %s", strings.Join(args, " "), code, words, r)
	}
}

// processes lists the processes of this world by their environment: monitors
// and front ends carry MANIS_ROOT, QEMU is the child of a monitor.
func (w *world) processes() map[int]string {
	found := make(map[int]string)
	parents := make(map[int]int)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 {
			fields := strings.Fields(string(stat[i+1:]))
			if len(fields) > 1 && fields[0] != "Z" {
				parents[pid], _ = strconv.Atoi(fields[1])
			}
		}
		env, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if bytes.Contains(env, []byte("MANIS_ROOT="+w.root+"\x00")) {
			cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
			found[pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
		}
	}
	for pid, parent := range parents {
		if _, ok := found[parent]; ok && found[pid] == "" {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			found[pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
		}
	}
	return found
}

// vm returns the pids of a running container's monitor and QEMU.
func (w *world) vm(name string) (monitor, qemu int) {
	w.t.Helper()
	out := w.ok("inspect", "--format", "{{.State.Pid}} {{.Manis.MonitorPid}}", name)
	if n, err := fmt.Sscan(out, &qemu, &monitor); n != 2 || qemu == 0 || monitor == 0 {
		w.t.Fatalf("pids of %s: %q, %v", name, out, err)
	}
	return monitor, qemu
}

// checkLeaks removes what the test left in order and complains about the rest.
func (w *world) checkLeaks() {
	if _, err := os.Stat(w.root); err != nil {
		return // never used
	}
	if ids := w.ok("ps", "-aq"); ids != "" {
		w.ok(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...)
	}
	eventually(w.t, "every process to end", func() bool { return len(w.processes()) == 0 })
	for pid, cmdline := range w.processes() {
		w.t.Errorf("left running: %d %s", pid, clip(cmdline))
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, dir := range []string{w.run, filepath.Join(w.root, "containers")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.Name() != "lock" {
				w.t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	if bytes.Contains(mounts, []byte(w.root)) || bytes.Contains(mounts, []byte(w.run)) {
		w.t.Errorf("mounts left on the host:\n%s", mounts)
	}
}

// eventually waits for something that other processes bring about.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(commandTime / 2); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Errorf("waited in vain for %s", what)
}
