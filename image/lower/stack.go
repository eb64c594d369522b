// Package lower keeps an EROFS image of each stack of directories that overlay mounts have below their writable one:
// what a snapshotter has unpacked of an image's layers. They are found by the identity of the directories, are made
// in the background, and are thrown away with them. It must not know who mounts what, nor of machines.
package lower

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"manis/image/rootfs"
)

// maxLayers is how many directories a stack may have: more than overlayfs takes.
const maxLayers = 500

// Stack is a number of directories over each other, which nobody changes.
type Stack struct {
	dirs []string // lowest first
	key  string
}

// Identify finds out which directories these paths, lowest first, name just now. They must be absolute. The identity
// comes from device, inode, and the times of the inode's making and last change, so that a path which is used again
// for something else is something else.
func Identify(dirs []string) (*Stack, error) {
	switch n := len(dirs); {
	case n == 0:
		return nil, errors.New("a stack of no directories")
	case n > maxLayers:
		return nil, fmt.Errorf("a stack of %d directories (at most %d)", n, maxLayers)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "manis lower %d\n", rootfs.Format)
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("directory %q: is no absolute path", dir)
		}
		var st unix.Statx_t
		const want = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_CTIME | unix.STATX_BTIME
		if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, want, &st); err != nil {
			return nil, fmt.Errorf("directory %s: %w", dir, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, fmt.Errorf("directory %s: is none", dir)
		}
		fmt.Fprintf(sum, "%q %d:%d %d %d.%d %d.%d\n", dir, st.Dev_major, st.Dev_minor, st.Ino,
			st.Ctime.Sec, st.Ctime.Nsec, st.Btime.Sec, st.Btime.Nsec)
	}
	s := &Stack{dirs: dirs}
	s.key = hex.EncodeToString(sum.Sum(nil)[:16])
	return s, nil
}
