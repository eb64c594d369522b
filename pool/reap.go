package pool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"manis/place"
)

// tidy removes what a process that was killed has left.
func (p *Pool) tidy(pid int) {
	sockets, _ := filepath.Glob(filepath.Join(p.Dir, fmt.Sprintf("[0-9a-f]*-%d", pid)))
	for _, path := range append(sockets, filepath.Join(p.Dir, place.StandbyDir(pid))) {
		os.RemoveAll(path)
	}
	os.Remove(p.Dir) // when it was the last
}

// sweep does so for those whose pool was killed as well. Machines of such a pool end by
// themselves, claimed ones are a container's business: what runs is left alone.
func (p *Pool) sweep() {
	entries, _ := os.ReadDir(p.Dir)
	for _, e := range entries {
		name := e.Name()
		pid, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
		if err == nil && !isStandby(pid) {
			p.tidy(pid)
		}
	}
}

// isStandby reports whether a process is a machine's, or was before it became a container's. The
// number of one that has ended may be another's.
func isStandby(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	words := bytes.Split(b, []byte{0})
	// Where it cannot be read, or is not there yet, nothing is known against it.
	return err != nil || len(b) == 0 || len(words) > 1 && string(words[1]) == "standby"
}

// Leave removes the directory of a pool that nobody keeps any more and in which no machine is
// left. The processes of machines call it when they end: their pool may have been killed.
func Leave(dir string) {
	os.Remove(dir)
	removeDead(filepath.Join(filepath.Dir(dir), place.PoolSocketName))
}

// listens reports whether there is a socket at path that somebody holds: manisd, or systemd in its
// place. Nobody notices the question: it is asked by a socket of another type.
func listens(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return true // not known to be dead
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}

// removeDead removes a socket that its process has left when it was killed.
func removeDead(path string) {
	if _, err := os.Lstat(path); err != nil || listens(path) {
		return
	}
	alone(path, func() error {
		if !listens(path) {
			os.Remove(path)
		}
		return nil
	})
}

// alone keeps two processes from replacing one socket at the same time.
func alone(path string, do func() error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	return do()
}
