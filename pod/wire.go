package pod

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A message is its length, 32 bits big endian, and JSON. Its descriptors come with the
// length. A request is answered by one reply on the same connection. Who has asked for a container
// says with one byte more that it is to stay.

// kept is that byte.
const kept = 1

// maxMessage bounds a message, bytes: a configuration fits.
const maxMessage = 32 << 20

// maxFiles bounds the descriptors of a message.
const maxFiles = 8

// send writes one message.
func send(conn *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("message of %d bytes is too long", len(body))
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	if _, _, err := conn.WriteMsgUnix(head[:], rights, nil); err != nil {
		return err
	}
	_, err = conn.Write(body)
	return err
}

// receive reads one message into v. The descriptors are the caller's, also with an error.
func receive(conn *net.UnixConn, v any) (files []*os.File, err error) {
	head, rights := make([]byte, 4), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, m, flags, _, err := conn.ReadMsgUnix(head, rights)
	if err != nil {
		return nil, err
	}
	if n == 0 && m == 0 {
		return nil, io.EOF
	}
	if messages, err := unix.ParseSocketControlMessage(rights[:m]); err == nil {
		for _, message := range messages {
			fds, err := unix.ParseUnixRights(&message)
			if err != nil {
				continue
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "received"))
			}
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return files, errors.New("message with too many descriptors")
	}
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return files, err
	}
	length := binary.BigEndian.Uint32(head)
	if length > maxMessage {
		return files, fmt.Errorf("message of %d bytes is too long", length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(conn, body); err != nil {
		return files, err
	}
	return files, json.Unmarshal(body, v)
}
