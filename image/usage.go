package image

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// diskUsage is what du(1) would say of path, in bytes.
func diskUsage(path string) int64 {
	var n int64
	filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			n += allocated(p)
		}
		return nil
	})
	return n
}

func allocated(path string) int64 {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
