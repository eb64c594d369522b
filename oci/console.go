package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// openTerminal makes a pseudo-terminal whose slave passes every byte as it is: the guest has
// the terminal that edits lines.
func openTerminal(size *specs.Box) (master, slave *os.File, err error) {
	fail := func(err error) (*os.File, *os.File, error) {
		if master != nil {
			master.Close()
		}
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return fail(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return fail(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return fail(err)
	}
	if _, err := term.MakeRaw(int(slave.Fd())); err != nil {
		slave.Close()
		return fail(err)
	}
	if size != nil && size.Height > 0 && size.Width > 0 {
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
	}
	return master, slave, nil
}

// consoleTime bounds the wait for who listens on a console socket.
const consoleTime = 10 * time.Second

// sendTerminal hands the master of a terminal to who listens on a console socket, as runc's
// terminals.md describes: its descriptor, with its name as data.
func sendTerminal(ctx context.Context, socket string, master *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, consoleTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("send the terminal to the console socket: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(consoleTime))
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("send the terminal to the console socket: it is no unix socket")
	}
	if _, _, err := uc.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(int(master.Fd())), nil); err != nil {
		return fmt.Errorf("send the terminal to the console socket: %w", err)
	}
	return nil
}
