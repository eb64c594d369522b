package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// terminal is a command on a terminal of 120 columns and 40 rows, which the test types
// into and looks at.
type terminal struct {
	*running
	master *os.File
}

// terminal starts a command on a terminal of its own.
func (w *world) terminal(args ...string) *terminal {
	w.t.Helper()
	master, slave, err := openPTY()
	if err != nil {
		w.t.Skipf("no terminals on this machine: %v", err)
	}
	if w.user != nil {
		slave.Chown(int(w.user.uid), int(w.user.gid))
	}
	p := w.start(func(cmd *exec.Cmd, p *running) error {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
		return nil
	}, args...)
	slave.Close()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.out.Write([]byte(strings.ReplaceAll(string(buf[:n]), "\r\n", "\n")))
			if err != nil { // EIO when the last user of the terminal is gone
				return
			}
		}
	}()
	w.t.Cleanup(func() {
		p.cancel()
		<-p.done
		master.Close()
		<-shown
	})
	// What was printed last is read before the end is noticed.
	done := make(chan struct{})
	ended := p.done
	go func() {
		<-ended
		<-shown
		close(done)
	}()
	p.done = done
	return &terminal{p, master}
}

// keys types.
func (t *terminal) keys(s string) {
	t.t.Helper()
	if _, err := t.master.WriteString(s); err != nil {
		t.t.Fatalf("%s: type: %v", t.name, err)
	}
}

// resize changes the terminal's size, which the kernel tells the command by a signal.
func (t *terminal) resize(rows, columns uint16) {
	t.t.Helper()
	raw, err := t.master.SyscallConn()
	if err != nil {
		t.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err != nil {
		t.t.Fatal(err)
	}
}

func openPTY() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	unlock := int32(0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); errno != 0 {
		return nil, nil, errno
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120}); err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), "terminal"), slave, nil
}
