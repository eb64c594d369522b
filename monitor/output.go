package monitor

import (
	"io"
	"net"
	"slices"
	"sync"
)

// copyBuffer is the size of one read of a container's output, bytes.
const copyBuffer = 64 << 10

// output spreads one stream of the container (stdout or stderr) to the log
// and to whoever is attached. It reads no faster than its slowest attachment: a
// reader that stops, stops the container's writing and grows nothing here. Who
// hangs up is dropped.
type output struct {
	mu    sync.Mutex
	sinks []net.Conn
	ended bool
	// pumped is set when a pump has been started, which ends the stream.
	pumped bool
}

// attach adds a sink, which output closes when the stream ends.
func (o *output) attach(sink net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		sink.Close()
		return
	}
	o.sinks = append(o.sinks, sink)
}

// pump copies until from ends; keep gets every byte, if not nil.
func (o *output) pump(from io.Reader, keep io.Writer) {
	buf := make([]byte, copyBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if keep != nil {
				// A log on a full disk loses lines, never the container.
				keep.Write(buf[:n])
			}
			o.spread(buf[:n])
		}
		if err != nil {
			break
		}
	}
	o.end()
}

// end closes every sink: the stream is over.
func (o *output) end() {
	o.mu.Lock()
	sinks := o.sinks
	o.sinks, o.ended = nil, true
	o.mu.Unlock()
	for _, s := range sinks {
		s.Close()
	}
}

func (o *output) spread(b []byte) {
	o.mu.Lock()
	sinks := slices.Clone(o.sinks)
	o.mu.Unlock()
	for _, s := range sinks {
		if _, err := s.Write(b); err == nil {
			continue
		}
		s.Close()
		o.mu.Lock()
		o.sinks = slices.DeleteFunc(o.sinks, func(c net.Conn) bool { return c == s })
		o.mu.Unlock()
	}
}

// input feeds the container's stdin from one attachment after another. Each
// write goes to the guest whole; attachments that write at the same time mix, as
// docker's do.
type input struct {
	mu     sync.Mutex
	to     net.Conn
	closed bool
}

func (i *input) copyFrom(from net.Conn, once bool) {
	defer from.Close()
	buf := make([]byte, copyBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := i.to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			if once {
				i.close()
			}
			return
		}
	}
}

// close gives the container end of file on its stdin.
func (i *input) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.closed && i.to != nil {
		i.closed = true
		i.to.Close()
	}
}
