package pod

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"manis/api/agent"
	"manis/network/netns"
)

const (
	// maxForwards bounds the connections that are carried at once; further ones wait to be accepted.
	maxForwards = 128
	// forwardTime is how long the guest may take to connect.
	forwardTime = 15 * time.Second
)

// ForwardLocal carries what programs of the host send to localhost in the pod's network namespace, whatever the TCP port, to the
// machine's localhost, until the pod ends. It comes after Boot, once.
func (p *Pod) ForwardLocal() error {
	p.making.Lock()
	defer p.making.Unlock()
	if p.sandbox == nil || p.servers == nil {
		return fmt.Errorf("%w: the pod has no network namespace that leads into a machine", ErrState)
	}
	l, err := netns.NewLoopback(p.servers.ns)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var carried sync.WaitGroup
	carried.Go(func() {
		places := make(chan struct{}, maxForwards)
		for {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return
			}
			conn, port, err := l.Accept()
			if ctx.Err() != nil {
				if err == nil {
					conn.Close()
				}
				return
			}
			if err != nil { // such as too many open files
				<-places
				time.Sleep(100 * time.Millisecond)
				continue
			}
			carried.Go(func() {
				defer func() { <-places }()
				if err := p.forward(ctx, conn, port); err != nil && ctx.Err() == nil {
					fmt.Fprintf(os.Stderr, "connect to the machine's localhost: %v\n", err)
				}
			})
		}
	})
	p.releases = append(p.releases, func() {
		cancel()
		l.Close()
		carried.Wait()
	})
	return nil
}

// forward carries one connection, which it owns. One that the guest refuses is reset, not closed in order.
func (p *Pod) forward(ctx context.Context, conn *net.TCPConn, port uint16) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	stream, token, err := p.sandbox.Stream()
	if err != nil {
		conn.SetLinger(0)
		return err
	}
	defer stream.Close()
	asked, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	if _, err := p.sandbox.Agent().Forward(asked, &agent.ForwardRequest{Port: uint32(port), Stream: token}); err != nil {
		conn.SetLinger(0)
		return err
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.Copy(stream, conn)
		stream.Close() // this direction only
	}()
	io.Copy(conn, stream)
	conn.CloseWrite()
	<-sent
	return nil
}
