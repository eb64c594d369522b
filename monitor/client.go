package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"manis/api/monitor"
	"manis/api/wire"
	"manis/container"
	"manis/vmm/jail"
)

// ErrNotRunning is returned for a container that has no monitor.
var ErrNotRunning = errors.New("container is not running")

// Client is a connection to a container's monitor. Any number may be open.
type Client struct {
	link *wire.Client
	api  monitor.MonitorService
	id   string
	logs string // the monitor's own log file
}

// SpawnOptions are how Spawn starts a monitor.
type SpawnOptions struct {
	// Executable is the manis binary; empty means this process's own.
	Executable string
	// Pool are the sockets of machines that wait for a container like this one, to be tried in
	// this order before a monitor is started; see Waiting.
	Pool []string
	// Missed is called when none of them took the container; it may be nil.
	Missed func()
	// Environ is added to the environment, such as place.Places.Environ.
	Environ []string
	// Copy starts a monitor that only serves copies, of a container that does not run and
	// that is not changed by it. The machine ends with the connection, or with the request
	// Stop, which says whether all that was copied has reached the disk.
	Copy bool
}

// Spawn starts the monitor of a created or stopped container, detached from
// the caller's terminal and life, and returns a connection to it. The machine boots
// at once, so the request Start that follows waits for less. It fails with
// container.ErrBusy while files are copied, and for a copy with ErrRunning when the
// container has a monitor; the monitor of a start ends then, and Lost says why.
func Spawn(ctx context.Context, c *container.Container, opt SpawnOptions) (*Client, error) {
	exe := opt.Executable
	if exe == "" {
		exe = "/proc/self/exe"
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start monitor: %w", os.NewSyscallError("socketpair", err))
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	args, files := []string{"monitor", c.ID}, []*os.File{theirs}
	purpose, words, take := forStart, monitorLog(c), c.Lock
	if opt.Copy {
		purpose, words, take = forCopy, copyLog(c), c.LockForCopy
	}
	conn, err := fileConn(fds[0])
	if err != nil {
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	log, err := os.OpenFile(words, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	defer log.Close()
	// A machine that waits takes the lock itself: whether it has can be unclear here.
	if !opt.Copy && !c.BeingCopied() {
		if claim(ctx, opt.Pool, c, theirs, log) {
			return newClient(c, conn, words)
		}
		if opt.Missed != nil {
			opt.Missed()
		}
	}
	// Taken here and handed on, so that who has to wait for it hears so at once. A monitor
	// that has said that its container has ended may hold it for a moment more: a start is
	// not refused for that, but leaves it to its monitor to try again.
	lock, err := take()
	switch {
	case err == nil:
		defer lock.Close()
		args, files = append(args, purpose), append(files, lock)
	case opt.Copy || !errors.Is(err, container.ErrRunning):
		conn.Close()
		return nil, err
	}
	cmd := exec.Command(exe, args...)
	cmd.Args[0] = "manis"
	cmd.Env = append(os.Environ(), opt.Environ...)
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := jail.StartKeeper(cmd.Start); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	// The monitor belongs to nobody; while this process lives, it must not
	// become a zombie of it.
	go cmd.Wait()
	return newClient(c, conn, words)
}

// Connect reaches the monitor of a running container, or fails with
// ErrNotRunning.
func Connect(ctx context.Context, c *container.Container) (*Client, error) {
	return connect(ctx, c, c.Socket(), monitorLog(c))
}

// ConnectCopy reaches the monitor that copies files of a container that does not run, to
// stop it, or fails with ErrNotRunning.
func ConnectCopy(ctx context.Context, c *container.Container) (*Client, error) {
	return connect(ctx, c, c.CopySocket(), copyLog(c))
}

func connect(ctx context.Context, c *container.Container, socket, words string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("container %s: %w", c.ID[:12], ErrNotRunning)
		}
		return nil, fmt.Errorf("connect to the monitor of container %s: %w", c.ID[:12], err)
	}
	return newClient(c, conn, words)
}

// newClient speaks to the monitor at the other end of conn, whose last words are in a file.
func newClient(c *container.Container, conn net.Conn, words string) (*Client, error) {
	link, err := wire.NewClient(conn)
	if err != nil {
		return nil, fmt.Errorf("connect to the monitor of container %s: %w", c.ID[:12], err)
	}
	return &Client{link: link, api: monitor.NewMonitorClient(link.Control()), id: c.ID, logs: words}, nil
}

func monitorLog(c *container.Container) string { return filepath.Join(c.Dir(), "monitor.log") }

// copyLog is the monitor's own log during a copy. It goes with it.
func copyLog(c *container.Container) string { return filepath.Join(c.Dir(), "copy.log") }

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close()
	return net.FileConn(f)
}

// API is the typed client of the monitor.
func (c *Client) API() monitor.MonitorService { return c.api }

// Stream opens a byte stream and returns the token that names it in a request.
func (c *Client) Stream() (net.Conn, uint64, error) { return c.link.Stream() }

// Done is closed when the monitor has ended or hung up.
func (c *Client) Done() <-chan struct{} { return c.link.Done() }

// Close ends the connection; the container goes on.
func (c *Client) Close() error { return c.link.Close() }

// Lost explains a connection that ended without an answer: by the monitor's
// last words, if it left any.
func (c *Client) Lost() error {
	words := "it was killed"
	if f, err := os.Open(c.logs); err == nil {
		defer f.Close()
		b, _ := io.ReadAll(io.LimitReader(f, 4096))
		if line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n"); line != "" {
			words = line
		}
	}
	return fmt.Errorf("the monitor of container %s ended: %s", c.id[:12], words)
}
