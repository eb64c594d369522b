// Package vmmtest is the test suite that every driver of package vmm must pass,
// with the parts that other tests around virtual machines need: a guest that
// answers requests, and a way to run a package's tests a second time as an
// ordinary user. It knows no particular driver.
package vmmtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"manis/guest/initramfs"
)

// SecondRun is set in the environment of a test binary that another one has started.
const SecondRun = "MANIS_TEST_SECOND_RUN"

// What it finds there besides.
const (
	kernelVar = "MANIS_TEST_KERNEL"
	initrdVar = "MANIS_TEST_INITRD"
)

// nobody is the ordinary user of the second run.
const nobody = 65534

// Main runs the tests of a package and, when root does so, runs them
// again as an ordinary user. TestMain exits with its result.
func Main(m *testing.M) int {
	for _, a := range os.Args {
		if strings.HasPrefix(a, "-test.fuzz") || strings.HasPrefix(a, "-test.bench=") {
			return m.Run() // in workers and loops, where neither guest nor user matter
		}
	}
	dir, err := os.MkdirTemp("", "manis-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if os.Getenv(SecondRun) == "" {
		if err := buildGuest(dir); err != nil {
			fmt.Fprintln(os.Stderr, "build the test guest:", err)
			return 1
		}
	}
	if code := m.Run(); code != 0 || os.Geteuid() != 0 || os.Getenv(SecondRun) != "" {
		return code
	}
	if err := again(dir); err != nil {
		fmt.Fprintln(os.Stderr, "as an ordinary user:", err)
		return 1
	}
	return 0
}

// again runs this test binary as an ordinary user, from a directory that it can
// reach.
func again(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program := filepath.Join(dir, "test")
	if err := copyFile(program, self, 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	if err := os.Chown(tmp, nobody, nobody); err != nil {
		return err
	}
	args := []string{}
	for _, a := range os.Args[1:] {
		// Files of the go command's that only its own user can write.
		if !strings.HasPrefix(a, "-test.testlogfile") && !strings.HasPrefix(a, "-test.coverprofile") && !strings.HasPrefix(a, "-test.gocoverdir") {
			args = append(args, a)
		}
	}
	fmt.Println("again as an ordinary user")
	cmd := exec.Command(program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + tmp, "HOME=" + tmp, SecondRun + "=1",
		kernelVar + "=" + os.Getenv(kernelVar), initrdVar + "=" + os.Getenv(initrdVar)}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd.Run()
}

func copyFile(to, from string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Kernel and Initrd return the guest's files. The test is skipped where the
// kernel was not built.
func Kernel(t testing.TB) string {
	t.Helper()
	path := os.Getenv(kernelVar)
	if path == "" {
		t.Skip("no guest kernel: make build")
	}
	return path
}

// Initrd returns the file system of the guest in this package's folder.
func Initrd(t testing.TB) string {
	t.Helper()
	path := os.Getenv(initrdVar)
	if path == "" {
		t.Skip("the test guest could not be built")
	}
	return path
}

// buildGuest puts the kernel and the test guest where an ordinary user can read
// them, and their paths into the environment.
func buildGuest(dir string) error {
	top, err := moduleRoot()
	if err != nil {
		return err
	}
	if kernel := filepath.Join(top, "guest", "image", "vmlinuz"); exists(kernel) {
		copied := filepath.Join(dir, "vmlinuz")
		if err := copyFile(copied, kernel, 0o644); err != nil {
			return err
		}
		os.Setenv(kernelVar, copied)
	}
	program := filepath.Join(dir, "guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "manis/vmm/vmmtest/guest")
	build.Dir = top
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	agent, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	initrd := filepath.Join(dir, "initrd")
	f, err := os.OpenFile(initrd, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	os.Setenv(initrdVar, initrd)
	return errors.Join(initramfs.Write(f, agent), f.Close())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if exists(filepath.Join(dir, "go.mod")) {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working directory")
}
