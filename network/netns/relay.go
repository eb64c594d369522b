package netns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headerBytes = 10 // struct virtio_net_hdr
	lengthBytes = 4  // QEMU's stream framing: the length of the frame, big endian
	// minFrameBytes is an Ethernet header: a tap refuses less.
	minFrameBytes = 14
	// maxFrameBytes is the most that a tap or QEMU has for one frame.
	maxFrameBytes = 4096 + 65536
	// batchBytes is how much is collected from the tap before it is passed on.
	batchBytes = 256 << 10
	// turn is the most frames taken from the tap at once.
	turn = 64
)

// Relay carries frames between a tap of Take and a machine's card that is QEMU's stream netdev, until
// either ends, which is no error, or ctx does. Neither is closed, but no other deadline may be set on them.
// Frames come whole and with their checksums from the tap, since it was allowed nothing else.
func Relay(ctx context.Context, tap *os.File, conn net.Conn) error {
	if err := setHeader(tap); err != nil {
		return err
	}
	now := time.Unix(1, 0)
	interrupt := func() {
		tap.SetDeadline(now)
		conn.SetDeadline(now)
	}
	tap.SetDeadline(time.Time{})
	conn.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, interrupt)
	defer stop()
	ended := make(chan error, 2)
	go func() { ended <- toMachine(tap, conn) }()
	go func() { ended <- fromMachine(tap, conn) }()
	err := <-ended
	interrupt()
	<-ended
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE),
		errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EBADFD):
		return nil
	}
	return err
}

// setHeader puts a tap that QEMU may have had before into the state in which Take has made it.
func setHeader(tap *os.File) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TUNSETVNETHDRSZ, headerBytes); failed == nil {
			failed = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, 0)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("prepare the tap device: %w", err)
	}
	return nil
}

// toMachine passes on what the interface receives.
func toMachine(tap *os.File, conn net.Conn) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var header [headerBytes]byte
	batch := make([]byte, batchBytes)
	for {
		filled := 0
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			for range turn {
				room := batch[filled:]
				if len(room) < lengthBytes+maxFrameBytes {
					return true
				}
				n, err := unix.Readv(int(fd), [][]byte{header[:], room[lengthBytes : lengthBytes+maxFrameBytes]})
				switch {
				case err == unix.EAGAIN:
					return filled > 0
				case err == unix.EINTR:
					continue
				case err != nil:
					failed = os.NewSyscallError("readv", err)
					return true
				case n <= headerBytes:
					continue
				}
				n -= headerBytes
				binary.BigEndian.PutUint32(room, uint32(n))
				filled += lengthBytes + n
			}
			return true
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if _, err := conn.Write(batch[:filled]); err != nil {
			return err
		}
	}
}

// fromMachine passes on what the guest sends. A frame that the interface does not take is lost, as on a wire.
func fromMachine(tap *os.File, conn net.Conn) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	r := bufio.NewReaderSize(conn, batchBytes)
	var length [lengthBytes]byte
	frame := make([]byte, headerBytes+maxFrameBytes) // after an empty header
	for {
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > maxFrameBytes {
			return fmt.Errorf("frame of %d bytes where QEMU sends at most %d", n, maxFrameBytes)
		}
		whole := frame[:headerBytes+n]
		if _, err := io.ReadFull(r, whole[headerBytes:]); err != nil {
			return err
		}
		if n < minFrameBytes {
			continue
		}
		var failed error
		err := raw.Write(func(fd uintptr) bool {
			for {
				_, failed = unix.Write(int(fd), whole)
				if failed != unix.EINTR {
					return failed != unix.EAGAIN
				}
			}
		})
		if err == nil && (failed == unix.EBADFD || failed == unix.EBADF) {
			err = os.NewSyscallError("write", failed)
		}
		if err != nil {
			return err
		}
	}
}
