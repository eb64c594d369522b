package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"manis/image/fault"
)

// overlaid mounts directories over each other, lowest first, and returns where.
func overlaid(t *testing.T, lower []string, upper string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	stack := ""
	for _, l := range lower {
		stack = l + ":" + stack
	}
	stack = stack[:len(stack)-1]
	options := "lowerdir=" + stack
	if upper != "" {
		options += ",upperdir=" + upper + ",workdir=" + t.TempDir()
	}
	at := t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", 0, options); err != nil {
		t.Skipf("this host cannot mount an overlay in the folder for temporary files: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

// seen lists a directory of the host in the words of list.
func seen(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, p)
		if err != nil || name == "." {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			got[name] = "d"
			if st.Mode&0o7777 != 0o755 {
				got[name] = fmt.Sprintf("d %o", st.Mode&0o777)
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			got[name] = "l -> " + target
		case unix.S_IFCHR:
			got[name] = "c"
		case unix.S_IFIFO:
			got[name] = "p"
		default:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			got[name] = "f " + string(data)
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = name
				} else {
					got[name] = "= " + first[st.Ino]
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func buildDirectories(t *testing.T, dirs ...string) (*Image, error) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "image.erofs"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, err := BuildDirectories(t.Context(), f, dirs, Options{TempDir: t.TempDir()})
	return &Image{Path: f.Name(), DataSize: sum.Size}, err
}

// What overlayfs shows of directories that it has itself written is what their image holds.
func TestDirectoriesAreMergedAsByOverlayfs(t *testing.T) {
	var layers []string
	for _, script := range []string{
		`mkdir -p a/b/c etc; echo one >a/one; echo two >a/b/two; echo deep >a/b/c/deep; ln -s ../a/one etc/link; ln a/one etc/hard
		 mkfifo pipe; mknod null c 1 3; mkdir -m 700 secret; truncate -s 300k sparse; printf x >>sparse; echo gone >gone`,
		`rm gone; rm -r a/b; mkdir a/b; echo new >a/b/new; echo changed >etc/conf; chmod 711 secret; rm pipe; mkdir pipe; echo in >pipe/in`,
		`rm -r pipe; echo file >pipe; rm etc/link; echo last >a/one; mkdir -p x/y; echo y >x/y/z`,
	} {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		at := dir
		if len(layers) > 0 {
			at = overlaid(t, layers, dir)
		}
		cmd := exec.Command("sh", "-euc", script)
		cmd.Dir = at
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		layers = append(layers, dir)
	}
	want := seen(t, overlaid(t, layers, ""))
	img, err := buildDirectories(t, layers...)
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, img); !maps.Equal(got, want) {
		t.Errorf("the image has\n%v\noverlayfs shows\n%v", got, want)
	}
	again, err := buildDirectories(t, layers...)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(img.Path)
	b, _ := os.ReadFile(again.Path)
	if string(a) != string(b) {
		t.Error("the same directories gave other bytes")
	}
}

func TestDirectoriesThatCannotBeMerged(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "moved")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(sub, "user.overlay.redirect", []byte("/elsewhere"), 0); err != nil {
		t.Skipf("the folder for temporary files takes no extended attributes: %v", err)
	}
	if _, err := buildDirectories(t, dir); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("a renamed directory: %v", err)
	}
	if _, err := buildDirectories(t, filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}
