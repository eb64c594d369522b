package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// portName is the name that the VMM gives to the virtio-serial port.
const portName = "manis.agent.0"

// port is the virtio-serial port to the host.
type port struct {
	file *os.File
	conn syscall.RawConn
	// heard is set with the first byte from the host. Until then a read of
	// nothing means that the host is not connected yet, later that it is gone.
	heard bool
}

// openPort finds the port by name and opens it, and waits for its device.
func openPort(name string) (*port, error) {
	dev, err := awaitDevice(func() (string, error) { return findPort(name) })
	if err != nil {
		return nil, fmt.Errorf("find the host's serial port %s: %w", name, err)
	}
	fd, err := unix.Open("/dev/"+dev, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the host's serial port /dev/%s: %w", dev, err)
	}
	// The descriptor is non-blocking, so the file joins the poller.
	p := &port{file: os.NewFile(uintptr(fd), dev)}
	if p.conn, err = p.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("poll the host's serial port: %w", err)
	}
	return p, nil
}

func findPort(name string) (string, error) {
	const dir = "/sys/class/virtio-ports"
	names, err := readDir(dir)
	if err != nil && err != unix.ENOENT {
		return "", err
	}
	for _, n := range names {
		// The name appears after the port does.
		b, err := readFile(dir+"/"+n+"/name", 256)
		if err == nil && trim(b) == name {
			return n, nil
		}
	}
	return "", nil
}

func (p *port) Read(b []byte) (int, error) {
	var n int
	var err error
	waitErr := p.conn.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), b)
			if err == unix.EINTR {
				continue
			}
			// The poller is edge-triggered: it wakes when the host connects.
			return err != unix.EAGAIN && (n > 0 || err != nil || p.heard)
		}
	})
	if waitErr != nil {
		return 0, waitErr
	}
	if err != nil {
		return 0, os.NewSyscallError("read", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	p.heard = true
	return n, nil
}

func (p *port) Write(b []byte) (int, error) { return p.file.Write(b) }

// Close ends the reads of a session and keeps the port for the next one: opening it again would be
// an event that the host sees.
func (p *port) Close() error { return p.file.SetReadDeadline(time.Unix(1, 0)) }

// reopen makes reads wait again after Close.
func (p *port) reopen() error { return p.file.SetReadDeadline(time.Time{}) }

// meetAgain is after how long without an answer the host is told again that the session has ended.
const meetAgain = 100 * time.Millisecond

// meet makes sure, between two sessions, that neither end takes anything of the last one for the next
// one's: see Detach in the protocol.
func (p *port) meet(mark []byte) error {
	first, last := append(bytes.Clone(mark), 1), append(bytes.Clone(mark), 2)
	var seen []byte
	buf := make([]byte, 4096)
	for wanted := true; !bytes.Contains(seen, mark); {
		if wanted {
			if _, err := p.Write(first); err != nil {
				return err
			}
			if err := p.file.SetReadDeadline(time.Now().Add(meetAgain)); err != nil {
				return err
			}
		}
		n, err := p.Read(buf)
		// A host that was still in the last session has taken it for a part of that.
		if wanted = errors.Is(err, os.ErrDeadlineExceeded); err != nil && !wanted {
			return err
		}
		seen = append(seen[max(0, len(seen)-len(mark)):], buf[:n]...)
	}
	if err := p.reopen(); err != nil {
		return err
	}
	_, err := p.Write(last)
	return err
}
