package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Bounds of what QEMU may send. It is jailed because a guest may have taken it
// over; what it says is then the guest's word.
const (
	maxMessage = 1 << 20 // bytes of one message
	maxText    = 256     // bytes of a string that is kept or shown
)

// event is what the monitor is told without asking.
type event struct {
	Event string `json:"event"`
	Data  struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
		Action string `json:"action"`
		Open   bool   `json:"open"`
		Device string `json:"device"`
	} `json:"data"`
}

// version is QEMU's, as its greeting says it.
func version(major, minor, micro int, pkg string) string {
	s := fmt.Sprintf("%d.%d.%d", major, minor, micro)
	if pkg != "" {
		s += " (" + printable(pkg) + ")"
	}
	return s
}

// monitor is the client of QEMU's monitor protocol (QMP, docs/interop/qmp-spec)
// on one connection. Commands are sent one at a time; events go to a
// function as they arrive, so nothing is queued.
type monitor struct {
	conn net.Conn
	on   func(event)

	greeted chan struct{} // closed when the greeting was answered
	done    chan struct{} // closed when the connection has ended
	version string        // valid after greeted
	err     error         // why it ended; valid after done

	turn    chan struct{} // holds one token: the right to send a command
	mu      sync.Mutex
	id      uint64
	waiting chan reply
}

type reply struct {
	value json.RawMessage
	err   error
}

// negotiate is the first command, sent before QEMU exists, so that no round
// trip is lost. Its identity is 0.
const negotiate = `{"execute":"qmp_capabilities","id":0}` + "\n"

// newMonitor owns conn from now on.
func newMonitor(conn net.Conn, on func(event)) *monitor {
	m := &monitor{conn: conn, on: on, greeted: make(chan struct{}), done: make(chan struct{}), turn: make(chan struct{}, 1)}
	m.turn <- struct{}{}
	return m
}

// adopt goes on with a monitor that was greeted before its process was saved.
func (m *monitor) adopt(version string) {
	m.version = version
	close(m.greeted)
}

// run reads until the connection ends. The owner calls it once, on a
// goroutine that it waits for through done.
func (m *monitor) run() {
	defer close(m.done)
	r := bufio.NewReaderSize(m.conn, 4096)
	for {
		line, err := readLine(r, maxMessage)
		if err == nil {
			err = m.handle(line)
		}
		if err != nil {
			m.err = err
			m.conn.Close()
			return
		}
	}
}

// readLine returns the next line, which may have at most max bytes.
func readLine(r *bufio.Reader, max int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > max {
			return nil, fmt.Errorf("message of more than %d bytes", max)
		}
		if err == nil && line == nil {
			return part, nil
		}
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

type message struct {
	event
	Greeting *struct {
		Version struct {
			QEMU    struct{ Major, Minor, Micro int }
			Package string
		}
	} `json:"QMP"`
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func (m *monitor) handle(line []byte) error {
	var msg message
	if err := json.Unmarshal(line, &msg); err != nil {
		return fmt.Errorf("message that is not QMP: %w", err)
	}
	switch {
	case msg.Event != "":
		msg.Event, msg.Data.Reason, msg.Data.Action = printable(msg.Event), printable(msg.Data.Reason), printable(msg.Data.Action)
		m.on(msg.event)
	case msg.Greeting != nil:
		v := msg.Greeting.Version
		select {
		case <-m.greeted:
			return errors.New("second greeting")
		default:
			m.version = version(v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro, v.Package)
		}
	case msg.ID == nil || msg.Return == nil && msg.Error == nil:
		return errors.New("message that answers nothing")
	case *msg.ID == 0:
		if msg.Error != nil || m.version == "" {
			return fmt.Errorf("negotiation failed")
		}
		select {
		case <-m.greeted:
			return errors.New("second negotiation")
		default:
			close(m.greeted)
		}
	case *msg.ID >= preset:
		if msg.Error != nil {
			return errors.New(printable(msg.Error.Desc))
		}
	default:
		r := reply{value: msg.Return}
		if msg.Error != nil {
			r.err = errors.New(printable(msg.Error.Desc))
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		// An answer to a command whose caller has gone is dropped.
		if m.waiting != nil && *msg.ID == m.id {
			m.waiting <- r
			m.waiting = nil
		}
	}
	return nil
}

// command is what execute sends.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// execute sends a command, waits for its answer and stores it in result if
// that is not nil. When ctx ends first, the command may still take effect.
func (m *monitor) execute(ctx context.Context, name string, arguments, result any) error {
	return m.send(ctx, name, arguments, result, func(line []byte) error {
		_, err := m.conn.Write(line)
		return err
	})
}

// send is execute with another way of writing the command.
func (m *monitor) send(ctx context.Context, name string, arguments, result any, write func([]byte) error) error {
	fail := func(err error) error { return fmt.Errorf("ask QEMU to %s: %w", name, err) }
	select {
	case <-m.turn:
		defer func() { m.turn <- struct{}{} }()
	case <-m.done:
		return fail(io.ErrClosedPipe)
	case <-ctx.Done():
		return fail(ctx.Err())
	}
	answer := make(chan reply, 1)
	m.mu.Lock()
	m.id++
	id := m.id
	m.waiting = answer
	m.mu.Unlock()
	line, err := json.Marshal(command{name, arguments, id})
	if err != nil {
		return fail(err)
	}
	// QEMU reads commands even of a guest that hangs; should it not, ctx ends the write.
	stop := context.AfterFunc(ctx, func() { m.conn.SetWriteDeadline(time.Unix(1, 0)) })
	err = write(append(line, '\n'))
	if !stop() {
		m.conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		return fail(err)
	}
	select {
	case r := <-answer:
		if r.err == nil && result != nil {
			r.err = json.Unmarshal(r.value, result)
		}
		if r.err != nil {
			return fail(r.err)
		}
		return nil
	case <-m.done:
		return fail(io.ErrClosedPipe)
	case <-ctx.Done():
		return fail(ctx.Err())
	}
}

// printable returns s cut to maxText bytes with everything replaced that a
// terminal could take for a command.
func printable(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
