package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Free space below which a directory is reported.
const (
	littleSpace = 1 << 30
	noSpace     = 64 << 20
)

// dirCheck looks at the space and rights where a directory is or will be made.
func dirCheck(d Dir) Check {
	name := "disk: " + d.Name
	at := d.Path
	for !exists(at) && at != filepath.Dir(at) {
		at = filepath.Dir(at)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return Check{name, Fail, fmt.Sprintf("%s: %v", at, err), "choose another directory with --root"}
	}
	free := st.Bavail * uint64(st.Bsize)
	c := ok(name, "%s free at %s", size(free), d.Path)
	switch {
	case unix.Access(at, unix.W_OK|unix.X_OK) != nil:
		c.Status, c.Detail, c.Advice = Fail, at+" is not writable", "choose another directory with --root, or change its owner"
	case st.Flags&unix.ST_RDONLY != 0:
		c.Status, c.Detail, c.Advice = Fail, at+" is on a read-only file system", "choose another directory with --root"
	case free < noSpace:
		c.Status, c.Advice = Fail, "free some space: manis prune"
	case free < littleSpace:
		c.Status, c.Advice = Warn, "free some space: manis prune"
	case d.Volumes && !attributes(at):
		c.Status, c.Detail = Warn, c.Detail+", without extended attributes"
		c.Advice = "named volumes keep owners in them: put them on ext4, XFS or Btrfs"
	}
	return c
}

// attributes reports whether files below dir can have extended attributes of users.
func attributes(dir string) bool {
	f, err := os.CreateTemp(dir, ".manis-doctor-")
	if err != nil {
		return true // nothing is known
	}
	defer os.Remove(f.Name())
	defer f.Close()
	err = unix.Fsetxattr(int(f.Fd()), "user.virtfs.uid", []byte("0"), 0)
	return !errors.Is(err, unix.EOPNOTSUPP)
}

// toolCheck looks for a program, also where ordinary users' PATH does not lead.
func toolCheck(program, pkg, use string) Check {
	for _, name := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return ok(program, "%s", path)
		}
	}
	return Check{program, Fail, "not found, needed for " + use, "install the package " + pkg}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// digest is the SHA-256 of a file, and its size.
func digest(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}
