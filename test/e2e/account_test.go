package e2e

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// account is a user of the host who does not exist: a number with nothing to its name.
type account struct{ uid, gid uint32 }

func (a *account) credential() *syscall.Credential {
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: []uint32{}}
}

// newUserWorld is a world of an ordinary user: of who runs the tests, or when that is
// root, of somebody who owns nothing but a home directory.
func newUserWorld(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	if os.Geteuid() != 0 {
		return w
	}
	w.user = &account{uid: 54321, gid: 54321}
	home := filepath.Join(w.dir, "home")
	// The binary and the guest image may lie where nobody else can go.
	prefix := filepath.Join(w.dir, "prefix")
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{
		{manisBinary, "bin/manis", 0o755},
		{filepath.Join(filepath.Dir(manisBinary), "manisd"), "bin/manisd", 0o755},
		{filepath.Join(guestDir(), "vmlinuz"), "lib/manis/vmlinuz", 0o644},
		{filepath.Join(guestDir(), "initramfs"), "lib/manis/initramfs", 0o644},
	} {
		err := copyFile(f.from, filepath.Join(prefix, f.to), f.mode)
		if err != nil && !(f.to == "bin/manisd" && os.IsNotExist(err)) { // its tests say so
			t.Fatal(err)
		}
	}
	w.binary = filepath.Join(prefix, "bin", "manis")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{home, w.tmp, w.dir} {
		if err := os.Chown(dir, int(w.user.uid), int(w.user.gid)); err != nil {
			t.Fatal(err)
		}
	}
	// A world of defaults: the data, caches and configuration in the home directory, and
	// no runtime directory, as after su.
	w.root = filepath.Join(home, ".local", "share", "manis")
	w.env = append(cleanEnviron(), "HOME="+home, "USER=nobody-in-particular", "LOGNAME=nobody-in-particular",
		"TMPDIR="+w.tmp, "MANIS_RUN="+w.run, "MANIS_ROOT="+w.root)
	return w
}

func copyFile(from, to string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
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
