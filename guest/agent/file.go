package agent

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// writeFile writes content at once to a file that exists, like those of /proc,
// /sys and cgroups, where each write is one command.
func writeFile(path, content string) error {
	return writeFileAt(unix.AT_FDCWD, path, content)
}

func writeFileAt(dir int, path, content string) error {
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, []byte(content))
	if err == nil && n != len(content) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write %q to %s: %w", content, path, err)
	}
	return nil
}

// readFile returns a regular file's content, or an error when it is longer than
// limit bytes. It never waits at a FIFO and never opens a device.
func readFile(path string, limit int) ([]byte, error) {
	return readFileAt(unix.AT_FDCWD, path, limit)
}

func readFileAt(dir int, path string, limit int) ([]byte, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("read %s: not a regular file", path)
	}
	buf := make([]byte, 0, 1024)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
		if len(buf) > limit {
			return nil, fmt.Errorf("read %s: longer than %d bytes", path, limit)
		}
		if int64(len(buf)) == st.Size {
			return buf, nil // without asking for its end, which may be a question to the host
		}
	}
}
