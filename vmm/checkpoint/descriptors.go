package checkpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// descriptor is one open descriptor of a process.
type descriptor struct {
	fd     int
	target string // of the link in /proc/PID/fd
	flags  int    // of open(2), with O_CLOEXEC where it closes on execution
	info   map[string]string
}

func readDescriptors(pid int) ([]descriptor, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, err
	}
	var all []descriptor
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		d, err := readDescriptor(pid, fd)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b descriptor) int { return a.fd - b.fd })
	return all, nil
}

func readDescriptor(pid, fd int) (descriptor, error) {
	d := descriptor{fd: fd, info: map[string]string{}}
	var err error
	if d.target, err = os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil {
		return d, err
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return d, err
	}
	for line := range strings.Lines(string(info)) {
		name, value, _ := strings.Cut(line, ":")
		d.info[name] = strings.TrimSpace(value)
	}
	flags, err := strconv.ParseUint(d.info["flags"], 8, 32)
	if err != nil {
		return d, fmt.Errorf("read the flags of descriptor %d: %w", d.fd, err)
	}
	d.flags = int(flags)
	return d, nil
}

// descriptors adds what makes the descriptors again that are not given, in ascending order: each step takes
// the lowest free number, so that what lies between is filled for the time being.
func (p *plan) descriptors(all []descriptor, given []int, replaced map[string]string) error {
	next := 0
	var fillers []uint64
	fill := func(to int) {
		for ; next < to; next++ {
			if slices.Contains(given, next) {
				continue
			}
			s := p.call("fill a descriptor", unix.SYS_DUP, uint64(given[0]))
			s.flags, s.wanted = checked, uint64(next)
			fillers = append(fillers, uint64(next))
		}
	}
	for _, d := range all {
		if slices.Contains(given, d.fd) {
			continue
		}
		fill(d.fd)
		s, err := p.descriptor(d, replaced)
		if err != nil {
			return err
		}
		s.flags, s.wanted = checked, uint64(d.fd)
		next = d.fd + 1
	}
	for _, fd := range fillers {
		p.call("close a filler", unix.SYS_CLOSE, fd)
	}
	return nil
}

// descriptor adds the step that makes one descriptor.
func (p *plan) descriptor(d descriptor, replaced map[string]string) (*step, error) {
	flags := uint64(d.flags & (unix.O_CLOEXEC | unix.O_NONBLOCK))
	// Whoever has continued the process may have removed the file since.
	if path, ok := replaced[strings.TrimSuffix(d.target, " (deleted)")]; ok {
		return p.call("open "+path, unix.SYS_OPENAT, cwd, p.cstring(path), unix.O_RDONLY|unix.O_CLOEXEC), nil
	}
	switch {
	case d.target == "anon_inode:[eventfd]":
		count, err := strconv.ParseUint(d.info["eventfd-count"], 16, 64)
		if err != nil || count > 1<<31 {
			return nil, fmt.Errorf("descriptor %d, an eventfd, counts %q", d.fd, d.info["eventfd-count"])
		}
		if d.info["eventfd-semaphore"] == "1" {
			flags |= unix.EFD_SEMAPHORE
		}
		return p.call("make an eventfd", unix.SYS_EVENTFD2, count, flags), nil
	case d.target == "anon_inode:[eventpoll]":
		if _, ok := d.info["tfd"]; ok {
			return nil, fmt.Errorf("descriptor %d waits for others by epoll", d.fd)
		}
		return p.call("make an epoll", unix.SYS_EPOLL_CREATE1, flags&unix.O_CLOEXEC), nil
	case d.target == "anon_inode:[signalfd]":
		mask, err := strconv.ParseUint(d.info["sigmask"], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d, a signalfd: %w", d.fd, err)
		}
		b := make([]byte, 8)
		for i := range b {
			b[i] = byte(mask >> (8 * i))
		}
		none := ^uint64(0)
		return p.call("make a signalfd", unix.SYS_SIGNALFD4, none, p.put(b, 8), 8, flags), nil
	case below(p.keep, d.target):
		return p.file(d)
	case strings.HasPrefix(d.target, "/") && d.flags&unix.O_DIRECTORY != 0:
		// A directory is opened again, whatever is there then.
		keep := uint64(d.flags) & (unix.O_ACCMODE | unix.O_DIRECTORY | unix.O_PATH | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOFOLLOW)
		return p.call("open "+d.target, unix.SYS_OPENAT, cwd, p.cstring(d.target), keep), nil
	}
	return nil, fmt.Errorf("descriptor %d is %s, which cannot be made again", d.fd, d.target)
}

// cwd is AT_FDCWD as a register holds it.
const cwd = ^uint64(99)
