package stage

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"manis/test/debimage"
)

// top is the repository.
var top = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// Top returns the repository's directory.
func Top() string { return top }

var installed = sync.OnceValues(func() (string, error) {
	prefix := filepath.Join(dir, "prefix")
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{
		{"bin/manis", "bin/manis", 0o755},
		{"bin/manis-trust", "bin/manis-trust", 0o755},
		{"bin/containerd-shim-manis-v2", "bin/containerd-shim-manis-v2", 0o755},
		{"bin/manisd", "bin/manisd", 0o755},
		{"guest/image/vmlinuz", "lib/manis/vmlinuz", 0o644},
		{"guest/image/initramfs", "lib/manis/initramfs", 0o644},
		{"guest/image/initramfs-confidential", "lib/manis/initramfs-confidential", 0o644},
		{"guest/image/bzImage", "lib/manis/bzImage", 0o644},
	} {
		if err := copyFile(filepath.Join(top, f.from), filepath.Join(prefix, f.to), f.mode); err != nil {
			return "", err
		}
	}
	return filepath.Join(prefix, "bin", "manis"), nil
})

// Manis returns the path of an installed bin/manis that every user may run.
func Manis(t testing.TB) string {
	t.Helper()
	path, err := installed()
	if os.IsNotExist(err) {
		t.Skipf("nothing to test: %v (make build)", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// Environ is the environment of an engine: the tests' own without what would change behaviour.
func Environ(home string, more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		for _, prefix := range []string{"MANIS_", "XDG_", "DOCKER_", "CONTAINER", "PODMAN_", "OTEL_", "TMPDIR=", "HOME=", "NOTIFY_SOCKET="} {
			if strings.HasPrefix(e, prefix) {
				return true
			}
		}
		return false
	})
	return append(append(env, "HOME="+home), more...)
}

// Home is the home directory of who runs the tests: what Manis makes once per machine is kept there
// between runs.
func Home() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return dir
	}
	return home
}

// Prepare boots the template from which machines of the default size go on, so that the tests'
// starts take their usual time. Where it fails, starts are slow and the tests the same.
func Prepare(t testing.TB, env []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Manis(t), "template", "build")
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Logf("no template: %v: %s", err, out)
	}
}

var layout = sync.OnceValues(func() (string, error) {
	b, err := debimage.New(nil)
	if err != nil {
		return "", err
	}
	r, err := debimage.Find("busybox")
	if err != nil {
		return "", err
	}
	img, err := b.Build(context.Background(), r)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "box")
	if err := debimage.WriteLayout(path, img, "box:latest"); err != nil {
		return "", err
	}
	if err := debimage.WriteArchive(path+".tar", img, "box:latest"); err != nil {
		return "", err
	}
	// For the other user's tests.
	return path, filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(p, 0o755)
		}
		return err
	})
})

// Box returns an image of busybox, named box, as an OCI layout and as an archive for docker load.
func Box(t testing.TB) (dir, archive string) {
	t.Helper()
	path, err := layout()
	if err != nil {
		t.Fatal(fmt.Errorf("build the image: %w", err))
	}
	return path, path + ".tar"
}
