package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// ErrProtocol is wrapped by the reason of Client.Err: the answering side sent what no agent sends.
var ErrProtocol = errors.New("the other side broke the protocol")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// MaxAnswer is the most bytes of one answer on the control stream. Decoded, an answer of empty elements takes some 80
// times its size.
const MaxAnswer = 1 << 20

const (
	typeWindowUpdate = 1
	typePing         = 2
	typeGoAway       = 3
	flagSYN          = 1
)

// guard stands between a connection and the asking end's session. It lets through what answers: frames of streams that
// were opened from here. The session itself would also take streams and pings from the other side, and keep
// for each of them a buffer or a goroutine for as long as nobody reads the replies: without end, as nothing here times out.
type guard struct {
	io.ReadWriteCloser
	broken func(error)

	opened atomic.Uint32 // the highest stream opened from here
	read   scanner
}

// scanner follows a stream of messages, each of a head and of as many bytes as that says.
type scanner struct {
	head []byte // of the length of a head
	have int    // bytes of head
	body uint32 // bytes left of the present message
}

func newScanner(head int) scanner { return scanner{head: make([]byte, head)} }

// scan takes the next bytes of the stream, and asks admit for each head how many bytes follow it.
func (s *scanner) scan(b []byte, admit func(head []byte) (body uint32, err error)) error {
	for len(b) > 0 {
		if s.body > 0 {
			n := min(int(s.body), len(b))
			s.body -= uint32(n)
			b = b[n:]
			continue
		}
		n := copy(s.head[s.have:], b)
		s.have += n
		b = b[n:]
		if s.have < len(s.head) {
			return nil
		}
		s.have = 0
		var err error
		if s.body, err = admit(s.head); err != nil {
			return err
		}
	}
	return nil
}

// Write is called with whole frames, see frames, by the session's one sending goroutine.
func (g *guard) Write(b []byte) (int, error) {
	if len(b) >= headSize && binary.BigEndian.Uint16(b[2:])&flagSYN != 0 {
		// Before it is sent: the answer to it may be quick. Those that are opened at once come in any order.
		g.opened.Store(max(g.opened.Load(), binary.BigEndian.Uint32(b[4:])))
	}
	return g.ReadWriteCloser.Write(b)
}

// Read is called by the session's one receiving goroutine only.
func (g *guard) Read(b []byte) (int, error) {
	n, err := g.ReadWriteCloser.Read(b)
	if bad := g.read.scan(b[:n], g.admit); bad != nil {
		g.broken(bad)
		return 0, bad
	}
	return n, err
}

// admit judges the head of a frame.
func (g *guard) admit(head []byte) (body uint32, err error) {
	version, kind := head[0], head[1]
	flags, stream, length := binary.BigEndian.Uint16(head[2:]), binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
	switch {
	case version != 0:
		return 0, violation("a frame of version %d", version)
	case kind == typeGoAway:
		return 0, nil // the session's end
	case kind == typePing:
		return 0, violation("a ping")
	case kind > typeGoAway:
		return 0, violation("a frame of type %d", kind)
	case flags&flagSYN != 0:
		return 0, violation("it opened a stream")
	case stream%2 == 0 || stream > g.opened.Load():
		return 0, violation("a frame of stream %d, which was not opened", stream)
	case kind == typeData && length > window:
		return 0, violation("a frame of %d bytes", length)
	case kind == typeData:
		body = length
	}
	return body, nil
}

// The head of a message of ttrpc: length, stream, type, flags, big endian.
const (
	messageHead    = 10
	typeRequest    = 1
	typeResponse   = 2
	maxOutstanding = 1 << 16
)

// answers is the control stream of the asking end: for each request it lets one answer through, of bounded size.
// The client of ttrpc itself takes any number of messages and writes a line to its log for each that it did not
// ask for.
type answers struct {
	net.Conn
	broken func(error)

	unsent uint32 // bytes left of the message that is being written

	mu          sync.Mutex
	outstanding map[uint32]struct{}

	read scanner
}

// Write is called under the client's lock, and begins with a message's head whenever the last message is complete.
func (a *answers) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		if a.unsent > 0 {
			n := min(int(a.unsent), len(rest))
			a.unsent -= uint32(n)
			rest = rest[n:]
			continue
		}
		if len(rest) < messageHead {
			return 0, errors.New("half the head of a message")
		}
		a.unsent = binary.BigEndian.Uint32(rest)
		if rest[8] == typeRequest {
			a.mu.Lock()
			full := len(a.outstanding) >= maxOutstanding
			if !full {
				a.outstanding[binary.BigEndian.Uint32(rest[4:])] = struct{}{}
			}
			a.mu.Unlock()
			if full {
				bad := violation("%d requests without an answer", maxOutstanding)
				a.broken(bad)
				return 0, bad
			}
		}
		rest = rest[messageHead:]
	}
	return a.Conn.Write(b)
}

// Read is called by the client's one receiving goroutine only.
func (a *answers) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if bad := a.read.scan(b[:n], a.admit); bad != nil {
		a.broken(bad)
		return 0, bad
	}
	return n, err
}

// admit judges the head of a message.
func (a *answers) admit(head []byte) (body uint32, err error) {
	length, stream, kind := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:]), head[8]
	a.mu.Lock()
	_, asked := a.outstanding[stream]
	delete(a.outstanding, stream)
	a.mu.Unlock()
	switch {
	case kind != typeResponse:
		return 0, violation("a message of type %d", kind)
	case !asked:
		return 0, violation("an answer to what was not asked")
	case length > MaxAnswer:
		return 0, violation("an answer of %d bytes", length)
	}
	return length, nil
}
