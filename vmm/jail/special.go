package jail

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// special has QEMU's 9p server change the mode of special files: sockets, FIFOs and device nodes.
//
// Since its remedy for CVE-2023-2861 the server refuses to open them, rightly, but it also opens, by path only (O_PATH), whatever it
// changes the mode of, and everything that it has just made: as /proc/self/fd/N it is given to chmod(2). So no guest could make a
// socket on a share (hw/9pfs/9p-local.c, fchmodat_nofollow; 9p-util.h, close_if_special_file; seen in 7.2).
//
// So both calls are answered from outside. Who opens a special file is given an empty regular one in its place, and the mode that it then gives to
// that one is given to the special file, by a thread with no rights but those of the process. Nobody reads or writes anything by it.
type special struct {
	caps uint64 // those of the process

	mu sync.Mutex
	// opened is for each thread what it has opened last, if that was special. It does not open another before it is done with
	// one, or has failed.
	opened map[uint32]*opening
}

type opening struct {
	fd   int // in the process
	file *os.File
}

func newSpecial(id identity) *special {
	return &special{caps: id.caps, opened: make(map[uint32]*opening)}
}

// take returns and forgets what a thread has opened last.
func (s *special) take(thread uint32) *opening {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opened[thread]
	delete(s.opened, thread)
	return o
}

// maxOpened bounds what is kept of threads that may have ended.
const maxOpened = 256

// open answers openat(2) with O_PATH.
func (s *special) open(a *answers, n *notification) response {
	if o := s.take(n.pid); o != nil {
		o.file.Close()
	}
	f := s.find(n)
	if f == nil {
		return n.goOn()
	}
	stand, err := unix.MemfdCreate("special", unix.MFD_CLOEXEC)
	if err != nil {
		f.Close()
		return n.goOn()
	}
	dummy := os.NewFile(uintptr(stand), "special")
	defer dummy.Close()
	fd, err := a.give(n, dummy)
	if err != nil {
		f.Close()
		return n.goOn()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.opened) >= maxOpened {
		s.forgetAll()
	}
	s.opened[n.pid] = &opening{fd, f}
	return response{id: n.id, val: int64(fd)}
}

// forget closes what is kept.
func (s *special) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetAll()
}

func (s *special) forgetAll() {
	for thread, o := range s.opened {
		o.file.Close()
		delete(s.opened, thread)
	}
}

// find opens the special file that a call is about; nil is anything else. The call's directory is the
// process's own, and so is the mount by which the file is found.
func (s *special) find(n *notification) *os.File {
	name, ok := n.text(n.args[1], unix.NAME_MAX)
	dir := int32(n.args[0])
	if !ok || name == "" || name == "." || name == ".." || strings.Contains(name, "/") || dir < 0 {
		return nil
	}
	parent, err := unix.Open(n.proc()+"/fd/"+strconv.Itoa(int(dir)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(parent)
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFSOCK, unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
			return os.NewFile(uintptr(fd), name)
		}
	}
	unix.Close(fd)
	return nil
}

// chmod answers chmod(2) and fchmodat(2). path is the address of the text.
func (s *special) chmod(n *notification, path, mode uint64) response {
	o := s.take(n.pid)
	if o == nil {
		return n.goOn()
	}
	defer o.file.Close()
	if text, ok := n.text(path, 63); !ok || text != "/proc/self/fd/"+strconv.Itoa(o.fd) {
		return n.goOn()
	}
	err := s.change(o.file, uint32(mode)&0o7777)
	if err == nil {
		return response{id: n.id}
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	return n.fail(errno)
}

// change gives a file a mode with the rights of the process.
func (s *special) change(f *os.File, mode uint32) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var caps [2]unix.CapUserData
			if err := unix.Capget(&head, &caps[0]); err != nil {
				return err
			}
			for i := range caps {
				caps[i].Effective &= uint32(s.caps >> (32 * i))
				caps[i].Permitted, caps[i].Inheritable = caps[i].Effective, 0
			}
			if err := unix.Capset(&head, &caps[0]); err != nil {
				return err
			}
			return unix.Chmod("/proc/thread-self/fd/"+strconv.Itoa(int(f.Fd())), mode)
		}()
	}()
	return <-done
}
