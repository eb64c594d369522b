package sandbox

import (
	"context"
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
	if _, err := call(ctx, s, &agent.DetachRequest{KeepContainers: keepContainers}, old.client.Detach); err != nil {
		s.detached.Store(false)
		return err
	}
	// Whatever was still written would be taken for the next session's.
	old.conn.Close()
	old.link.Close()
	select {
	case <-time.After(settleTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

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
