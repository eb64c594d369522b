// Package stage is where tests with real container engines take place: namespaces of their own for
// the network, mounts and processes. Bridges, firewall rules and port numbers there are nobody
// else's, every process that is seen belongs to the test, and whatever becomes of the test, nothing
// of it outlives its first process. The engines are the machine's, unchanged.
package stage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// roleVariable says what a copy of the test's program is to be: the first process of the stage,
// or the test on it.
const roleVariable = "MANIS_STAGE"

// User is an ordinary user with subordinate ids, whom nobody but the stage knows.
var User = struct {
	Name       string
	ID         uint32
	SubID      uint32
	SubIDCount uint32
}{"manis-stage", 54321, 655360, 65536}

// outside is the network namespace that the stage was made in, as a descriptor that the stage's processes inherit. What is
// built for a suite is fetched there.
const outside = 3

// onStage is set in the process that runs tests there.
var onStage bool

// absent is why there is no stage.
var absent string

// dir is the suite's directory, which everybody may enter.
var dir string

// Need skips a test when there is no stage for it.
func Need(t testing.TB) {
	t.Helper()
	if absent != "" {
		t.Skip(absent)
	}
}

// Dir returns the suite's directory.
func Dir() string { return dir }

// Main is the body of TestMain: it runs the tests on a stage and returns the exit code. After
// them, still on the stage, it calls done.
func Main(m *testing.M, done func() int) int {
	switch os.Getenv(roleVariable) {
	case "first":
		return first()
	case "test":
		dir = os.Getenv("MANIS_STAGE_DIR")
		os.Unsetenv(roleVariable)
		unix.CloseOnExec(outside)
		onStage = true
		return max(m.Run(), done())
	}
	if os.Geteuid() != 0 {
		absent = "only root can make namespaces and bridges for an engine"
		return m.Run()
	}
	code, err := enter()
	if err != nil {
		absent = fmt.Sprintf("this machine makes no namespaces for an engine: %v", err)
		return m.Run()
	}
	return code
}

// enter runs this program again as the first process of a stage.
func enter() (int, error) {
	// Short: a socket's address holds 107 bytes.
	d, err := os.MkdirTemp("/tmp", "manis-stage-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(d)
	if err := os.Chmod(d, 0o755); err != nil {
		return 0, err
	}
	network, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return 0, err
	}
	defer network.Close()
	// The first process dies with the thread that has started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVariable+"=first", "MANIS_STAGE_DIR="+d)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{network}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// An interrupted test still removes its directory.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		for range signals {
			cmd.Process.Kill()
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 1, nil
}

// first is the stage's first process: it makes the stage, starts the test, and reaps.
func first() int {
	if err := build(os.Getenv("MANIS_STAGE_DIR")); err != nil {
		fmt.Fprintln(os.Stderr, "build the stage:", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVariable+"=test")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(outside, "network")}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "wait for the tests:", err)
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid && status.Signaled():
			return 128 + int(status.Signal())
		}
	}
}

// build makes the namespaces those of a machine of its own.
func build(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("detach the mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Where engines keep what there is one of per machine, whatever their directories.
	for path, mode := range map[string]string{"/run": "0755", "/dev/shm": "1777"} {
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode="+mode); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
	}
	// On most machines everybody may open it, which an ordinary user's network needs.
	if tun := filepath.Join(dir, "tun"); unix.Mknod(tun, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))) == nil && os.Chmod(tun, 0o666) == nil {
		if err := unix.Mount(tun, "/dev/net/tun", "", unix.MS_BIND, ""); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("cover /dev/net/tun: %w", err)
		}
	}
	u := User
	for path, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::/nonexistent:/bin/sh\n", u.Name, u.ID, u.ID),
		"/etc/group":  fmt.Sprintf("%s:x:%d:\n", u.Name, u.ID),
		"/etc/subuid": fmt.Sprintf("%s:%d:%d\n", u.Name, u.SubID, u.SubIDCount),
		"/etc/subgid": fmt.Sprintf("%s:%d:%d\n", u.Name, u.SubID, u.SubIDCount),
	} {
		if err := addLine(path, filepath.Join(dir, filepath.Base(path)), line); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set up the loopback: %w", err)
	}
	return nil
}

// addLine covers a file by a copy with a line more. A file that is not there stays so: who
// needs it misses the package that brings it.
func addLine(path, copied, line string) error {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(b) > 0 && !strings.HasSuffix(string(b), "\n") {
		b = append(b, '\n')
	}
	if err := os.WriteFile(copied, append(b, line...), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(copied, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	return nil
}
