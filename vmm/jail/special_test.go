package jail_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"manis/vmm/jail"
)

const serveArg = "serve"

// serveFiles changes modes as QEMU's 9p server does, which takes nothing but ordinary files.
func serveFiles() {
	found := map[string]string{}
	dir, err := unix.Open(jail.SharesDir+"/s/a", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	change := func(dir int, name string, mode uint32) error {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
			return unix.ENXIO
		}
		return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
	}
	for _, name := range []string{"file", "dir", "fifo", "socket", "none", "link", "../a/fifo"} {
		found[name] = "done"
		if err := change(dir, name, 0o640); err != nil {
			found[name] = err.Error()
		}
	}
	// What is read-only stays so.
	if dir, err := unix.Open(jail.SharesDir+"/s/ro", unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
		found["read-only"] = fmt.Sprint(change(dir, "fifo", 0o640))
	}
	// Another descriptor, and another path, than what was opened.
	fd, _ := unix.Openat(dir, "socket", unix.O_PATH|unix.O_NOFOLLOW, 0)
	found["another path"] = fmt.Sprint(unix.Chmod(jail.SharesDir+"/s/a/dir", 0o710))
	found["the same again"] = fmt.Sprint(unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o666))
	json.NewEncoder(os.Stdout).Encode(found)
}

func TestModesOfSpecialFiles(t *testing.T) {
	dir, ro := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, ro} {
		if err := unix.Mkfifo(filepath.Join(d, "fifo"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("fifo", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	p, r := start(t, func(c *jail.Config) {
		c.Shares = []jail.Share{{Name: "s", Entries: []jail.Entry{{Name: "a", Host: dir}, {Name: "ro", Host: ro, ReadOnly: true}}}}
	}, serveArg)
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if status := p.Status(); status != 0 {
		t.Fatalf("ended with %x: %s", status, out)
	}
	if err := p.Release(); err != nil {
		t.Error(err)
	}
	found := map[string]string{}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	compare(t, found, map[string]string{
		"file": "done", "dir": "done", "fifo": "done", "socket": "done", "none": unix.ENOENT.Error(),
		"link": unix.ENXIO.Error(), "../a/fifo": unix.ENXIO.Error(), "read-only": unix.EROFS.Error(),
		"another path": "<nil>",
	})
	for name, want := range map[string]os.FileMode{"file": 0o640, "fifo": 0o640, "socket": 0o640, "dir": 0o710} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has the mode %o, not %o", name, got, want)
		}
	}
	if info, _ := os.Lstat(filepath.Join(ro, "fifo")); info.Mode().Perm() != 0o600 {
		t.Error("the mode of a file on a read-only share was changed")
	}
}
