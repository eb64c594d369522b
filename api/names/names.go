// Package names is what a guest's agent and its host say to each other on a stream that carries queries
// for names: each message of the domain name system (RFC 1035) in a frame of its own, in any
// order, the answer under the number of its query.
//
// The package knows nothing of what is in the messages.
package names

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Frame is one message.
type Frame struct {
	// Number is the query's, and its answer's.
	Number uint32
	// TCP says by which protocol the query came: answers by UDP may be cut short.
	TCP bool
	// Message is what was asked or answered, at most MaxMessage bytes. An empty answer says that there is none.
	Message []byte
}

// MaxMessage bounds a message, bytes: its length has 16 bits over TCP, and a datagram's, too.
const MaxMessage = 1<<16 - 1

// A frame is number (32 bits), protocol (8), length (16), big endian, and the message.
const headBytes = 7

const (
	overUDP = 0
	overTCP = 1
)

// Write writes a frame by one Write of w.
func Write(w io.Writer, f *Frame) error {
	if len(f.Message) > MaxMessage {
		return fmt.Errorf("message of %d bytes is too long", len(f.Message))
	}
	b := make([]byte, headBytes, headBytes+len(f.Message))
	binary.BigEndian.PutUint32(b, f.Number)
	if f.TCP {
		b[4] = overTCP
	}
	binary.BigEndian.PutUint16(b[5:], uint16(len(f.Message)))
	_, err := w.Write(append(b, f.Message...))
	return err
}

// Read reads the next frame; io.EOF between two frames is the stream's end.
func Read(r io.Reader) (*Frame, error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if head[4] != overUDP && head[4] != overTCP {
		return nil, fmt.Errorf("frame of protocol %d, which there is not", head[4])
	}
	f := &Frame{
		Number: binary.BigEndian.Uint32(head[:]), TCP: head[4] == overTCP,
		Message: make([]byte, binary.BigEndian.Uint16(head[5:])),
	}
	if _, err := io.ReadFull(r, f.Message); err != nil {
		return nil, fmt.Errorf("frame that is cut off: %w", io.ErrUnexpectedEOF)
	}
	return f, nil
}
