package resolver

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"manis/api/names"
	"manis/network/netns"
)

// Bounds of what a guest can make the host do at one time.
const (
	// maxQueries bounds the queries that are asked at once; the guest's next ones wait.
	maxQueries = 32
	// queryTime bounds one: resolvers in the guest have given up by then.
	queryTime = 10 * time.Second
)

// port is that of name servers.
const port = 53

// Serve asks a name server in the network namespace what comes by the stream, which it owns, until that ends or ctx
// is done, and returns why. All it has begun has ended then.
func Serve(ctx context.Context, ns *os.File, server netip.Addr, stream net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	defer stream.Close()
	places := make(chan struct{}, maxQueries)
	var writing sync.Mutex
	in := bufio.NewReader(stream)
	for {
		q, err := names.Read(in)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("queries for name server %s: %w", server, err)
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		asked.Go(func() {
			defer func() { <-places }()
			// What cannot be asked has an empty answer.
			answer, _ := ask(ctx, ns, server, q)
			writing.Lock()
			defer writing.Unlock()
			names.Write(stream, &names.Frame{Number: q.Number, TCP: q.TCP, Message: answer})
		})
	}
}

// Present reports whether anybody answers at the name server's port of a namespace. What nobody does may be the
// guest's own affair.
func Present(ns *os.File, server netip.Addr) bool {
	conn, err := dial(context.Background(), ns, "udp", server)
	if err != nil {
		return false
	}
	defer conn.Close()
	// On loopback the refusal of a datagram is there when the datagram has been sent. This one is an answer to nothing.
	if _, err := conn.Write([]byte{0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return false
	}
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return false
	}
	refused := false
	err = raw.Control(func(fd uintptr) {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		refused = err != nil || code != 0
	})
	return err == nil && !refused
}

// dial connects on a thread in the namespace; the connection may be used from everywhere.
func dial(ctx context.Context, ns *os.File, network string, server netip.Addr) (conn net.Conn, err error) {
	dialer := net.Dialer{Timeout: queryTime}
	doErr := netns.Do(ns, func() error {
		conn, err = dialer.DialContext(ctx, network, netip.AddrPortFrom(server, port).String())
		return nil
	})
	return conn, errors.Join(err, doErr)
}

// ask asks one query.
func ask(ctx context.Context, ns *os.File, server netip.Addr, q *names.Frame) ([]byte, error) {
	network := "udp"
	if q.TCP {
		network = "tcp"
	}
	conn, err := dial(ctx, ns, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(queryTime)); err != nil {
		return nil, err
	}
	if !q.TCP {
		if _, err := conn.Write(q.Message); err != nil {
			return nil, err
		}
		answer := make([]byte, names.MaxMessage)
		n, err := conn.Read(answer)
		return answer[:n], err
	}
	// Its length precedes each message (RFC 1035, section 4.2.2).
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q.Message))), q.Message...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	return answer, nil
}
