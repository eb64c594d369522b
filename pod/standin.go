package pod

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// standIn is the pod's side of a proxy that stands for a process of the guest.
type standIn struct {
	socket *os.File
	group  string        // of the proxy, for a container's first process
	done   chan struct{} // closed when the process has ended
}

// receiveStandIn makes of a request's descriptors the proxy's and the streams, which are a terminal alone or
// all three. It owns the files.
func receiveStandIn(files []*os.File) (*standIn, Attendant, error) {
	var streams Streams
	switch len(files) {
	case 2:
		streams.Terminal = files[1]
	case 4:
		streams.Stdin, streams.Stdout, streams.Stderr = files[1], files[2], files[3]
	default:
		closeAll(files)
		return nil, Attendant{}, errors.New("the request lacks the proxy, or streams")
	}
	s := &standIn{socket: files[0], done: make(chan struct{})}
	return s, Attendant{Streams: streams, Ended: s.end}, nil
}

// end tells the proxy the exit code, with which it ends.
func (s *standIn) end(e Exit) {
	close(s.done)
	if e.OOM && s.group != "" {
		if err := exhaust(s.group); err != nil {
			fmt.Fprintf(os.Stderr, "tell the host's control group %s that the container ran out of memory: %v\n", s.group, err)
		}
	}
	unix.Write(int(s.socket.Fd()), []byte{byte(e.Code)})
	s.socket.Close()
}

// obey carries out what the proxy of a process (execID "": the container's first one) is told by
// signals, until the process has ended. The proxy's death is the process's.
func (s *standIn) obey(p *Pod, id, execID string) {
	ctx := context.Background()
	follow(s.socket, s.done, func(signal uint32) {
		if signal == uint32(unix.SIGWINCH) && p.fit(ctx, id, execID) {
			return
		}
		p.Signal(ctx, &SignalRequest{ID: id, ExecID: execID, Signal: signal})
	}, func() {
		p.abandonStreams(id, execID)
		p.Signal(ctx, &SignalRequest{ID: id, ExecID: execID, Signal: uint32(unix.SIGKILL)})
	})
}

// follow reads the signals of a proxy until done, and calls gone when it dies before.
func follow(proxy *os.File, done <-chan struct{}, signal func(uint32), gone func()) {
	var b [1]byte
	for {
		n, err := proxy.Read(b[:])
		select {
		case <-done:
			return
		default:
		}
		if err != nil || n == 0 {
			gone()
			return
		}
		signal(uint32(b[0]))
	}
}
