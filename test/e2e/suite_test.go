// Package e2e tries the whole product as its users do: the built binary, real
// virtual machines, real images, a real registry. Each test has a world of its own, an
// installation below a temporary directory; when the test ends nothing of that may be
// left: no process, no socket, no mount, no container.
//
// The binary is bin/manis of this tree, or the one that MANIS_TEST_BINARY names. Tests
// that need what this machine lacks (root for Debian images and network namespaces, a
// terminal, a package) are skipped and say so. With MANIS_TEST_LONG=1 the amounts of data
// are those that the specification promises, not those of a quick run.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// top is the repository.
var top = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// manisBinary is what is tested.
var manisBinary = func() string {
	if path := os.Getenv("MANIS_TEST_BINARY"); path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			panic(err)
		}
		return abs
	}
	return filepath.Join(top, "bin", "manis")
}()

// long asks for the full amounts of data.
var long = os.Getenv("MANIS_TEST_LONG") != ""

// suiteDir holds what tests share: images in the form in which they are loaded, and
// the probe. Everybody may read it.
var suiteDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("/tmp", "manis-e2e-suite-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		suiteDir = dir
		return m.Run()
	}())
}

// guestDir is where the guest image is: what the binary finds by itself, unless
// MANIS_GUEST says otherwise.
func guestDir() string {
	if dir := os.Getenv("MANIS_GUEST"); dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			panic(err)
		}
		return abs
	}
	return filepath.Join(filepath.Dir(filepath.Dir(manisBinary)), "guest", "image")
}

// needBinary skips a test when there is nothing to test.
func needBinary(t testing.TB) {
	t.Helper()
	for _, path := range []string{manisBinary, filepath.Join(guestDir(), "vmlinuz"), filepath.Join(guestDir(), "initramfs")} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("nothing to test: %v (make build)", err)
		}
	}
}

// needRoot skips a test that an ordinary user cannot set the stage for.
func needRoot(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("only root can %s", what)
	}
}

// probeBinary builds test/probe, which answers questions from inside a container.
var probeBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(suiteDir, "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./test/probe")
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the probe: %w\n%s", err, out)
	}
	return path, nil
})
