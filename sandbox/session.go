package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"manis/api/agent"
	"manis/api/wire"
	"manis/vmm"
)

// session is one conversation with the agent. There is another one after the machine was saved.
type session struct {
	conn   *kept
	link   *wire.Client
	client agent.AgentService
	// next is closed when another session has begun, or never will.
	next chan struct{}
}

// kept is the connection to the agent as one session has it: its end is not the connection's.
type kept struct {
	net.Conn
	ended atomic.Bool
}

func (k *kept) Write(b []byte) (int, error) {
	if k.ended.Load() {
		return 0, net.ErrClosed
	}
	return k.Conn.Write(b)
}

// Close ends the session's reads and writes.
func (k *kept) Close() error {
	k.ended.Store(true)
	return k.Conn.SetReadDeadline(time.Unix(1, 0))
}

// converse begins a session.
func (s *Sandbox) converse() error {
	conn := &kept{Conn: s.vm.Agent()}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	link, err := wire.NewClient(conn)
	if err != nil {
		return err
	}
	old := s.current.Swap(&session{conn: conn, link: link, client: agent.NewAgentClient(link.Control()), next: make(chan struct{})})
	if old != nil {
		close(old.next)
	}
	return nil
}

// client is the present session's.
func (s *Sandbox) client() agent.AgentService { return s.current.Load().client }

// settleTime is how long an agent gets to become idle.
const settleTime = 100 * time.Millisecond

// Detach prepares a sandbox for being saved: its agent waits for another session. Without a
// container the slots of a sandbox that was started with Hold are emptied. All that can be
// done with it then is to save its machine, to Reattach and to kill it.
func (s *Sandbox) Detach(ctx context.Context, keepContainers bool) error {
	if !keepContainers {
		for _, d := range s.slots {
			if err := s.vm.Insert(ctx, vmm.Disk{Serial: d.Serial, ReadOnly: d.ReadOnly}); err != nil {
				return err
			}
		}
	}
	old := s.current.Load()
	s.detached.Store(true)
	mark := make([]byte, 32)
	rand.Read(mark)
	_, lost := call(ctx, s, &agent.DetachRequest{KeepContainers: keepContainers, Mark: mark}, old.client.Detach)
	if lost != nil && !errors.Is(lost, ErrEnded) {
		s.detached.Store(false)
		return lost
	}
	// An agent that is quick may have ended the session before its reply was read: its mark tells.
	old.conn.Close()
	old.link.Close()
	if err := meet(ctx, old.conn.Conn, mark); err != nil {
		return errors.Join(lost, fmt.Errorf("end the session with the guest's agent: %w", err))
	}
	select {
	case <-time.After(settleTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// meetTime bounds how long an agent may take to end a session.
const meetTime = 30 * time.Second

// meet makes sure that neither end takes anything of the last session for the next one's: see Detach in the
// protocol.
func meet(ctx context.Context, conn net.Conn, mark []byte) error {
	deadline := time.Now().Add(meetTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	await := func(kind byte) error {
		mark := append(bytes.Clone(mark), kind)
		var seen []byte
		for !bytes.Contains(seen, mark) {
			n, err := conn.Read(buf)
			if err != nil {
				return err
			}
			seen = append(seen[max(0, len(seen)-len(mark)):], buf[:n]...)
		}
		return nil
	}
	if err := await(1); err != nil {
		return err
	}
	if _, err := conn.Write(mark); err != nil {
		return err
	}
	return await(2)
}

// Detached reports whether a session was ended and none has begun since: when Detach fails, too.
func (s *Sandbox) Detached() bool { return s.detached.Load() }

// Reattach begins another session after Detach and sets the machine up again, with new
// entropy: copies of it may run elsewhere.
func (s *Sandbox) Reattach(ctx context.Context, setup *agent.SetupRequest) error {
	if err := s.converse(); err != nil {
		return err
	}
	err := s.setUp(ctx, setup)
	s.detached.Store(false)
	return err
}

// lasting makes a request that waits for something over the ends of sessions.
func lasting[Req, Resp any](ctx context.Context, s *Sandbox, req Req, method func(agent.AgentService) func(context.Context, Req) (Resp, error)) (Resp, error) {
	for {
		now := s.current.Load()
		resp, err := method(now.client)(ctx, req)
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		if s.detached.Load() || s.current.Load() != now {
			select {
			case <-now.next:
				continue
			case <-s.vm.Done():
			case <-ctx.Done():
				return resp, ctx.Err()
			}
		}
		if s.linkLost() {
			return resp, s.ended()
		}
		return resp, err
	}
}
