package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/api/names"
)

// Bounds of one name server's service: to the machine's own processes, so that they cannot make the agent grow.
const (
	// maxResolvers bounds the name servers.
	maxResolvers = 8
	// maxQueries bounds the queries that wait for an answer. A datagram beyond them is lost, as elsewhere.
	maxQueries = 64
	// maxAskers bounds the connections; further ones wait to be accepted.
	maxAskers = 32
	// askerTime is how long a connection may be silent.
	askerTime = 30 * time.Second
)

// resolver serves one name server's address.
type resolver struct {
	stream net.Conn
	udp    *net.UDPConn
	tcp    *net.TCPListener
	askers chan struct{} // a place for each connection
	over   chan struct{} // closed at the end

	writing sync.Mutex // of the stream

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]func(answer []byte)
}

// Resolve is the agent's request of this name.
func (s *service) Resolve(ctx context.Context, r *api.ResolveRequest) (*api.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	stream, err := s.guest.Claim(ctx, r.Stream)
	if err != nil {
		return nil, fail(codes.InvalidArgument, err)
	}
	server, err := netip.ParseAddr(r.Server)
	if err != nil || !server.IsLoopback() || server.Is4In6() || server.Zone() != "" {
		stream.Close()
		return nil, fail(codes.InvalidArgument, fmt.Errorf("name server %q is not an address of loopback", r.Server))
	}
	if err := s.resolve(server, stream); err != nil {
		stream.Close()
		return nil, fmt.Errorf("name server %s: %w", server, err)
	}
	return &api.Empty{}, nil
}

// resolve begins to serve. With an error the stream is still the caller's.
func (s *service) resolve(server netip.Addr, stream net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.isSetUp:
		return errNotSetUp
	case s.resolvers[server]:
		return fail(codes.AlreadyExists, errors.New("it is served already"))
	case len(s.resolvers) >= maxResolvers:
		return fail(codes.ResourceExhausted, fmt.Errorf("the machine has %d already", len(s.resolvers)))
	}
	r := &resolver{stream: stream, askers: make(chan struct{}, maxAskers), over: make(chan struct{}), waiting: make(map[uint32]func([]byte))}
	if err := r.listen(server); err != nil {
		return err
	}
	release, err := detour(server, uint16(r.udp.LocalAddr().(*net.UDPAddr).Port))
	if err != nil {
		r.close()
		return err
	}
	s.resolvers[server] = true
	guard("name server", r.datagrams)
	guard("name server", r.connections)
	guard("name server", func() {
		r.answers()
		release()
		r.close()
		s.mu.Lock()
		delete(s.resolvers, server)
		s.mu.Unlock()
	})
	return nil
}

// listenTries is how often a port is looked for that is free for UDP and TCP.
const listenTries = 16

// listen takes a port of the address. Not 53: that one is a program's of the machine which serves all addresses.
func (r *resolver) listen(server netip.Addr) error {
	var err error
	for range listenTries {
		if r.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, 0))); err != nil {
			return err
		}
		at := netip.AddrPortFrom(server, uint16(r.udp.LocalAddr().(*net.UDPAddr).Port))
		if r.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err == nil {
			return nil
		}
		r.udp.Close()
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
	return err
}

func (r *resolver) close() {
	close(r.over)
	r.udp.Close()
	r.tcp.Close()
	r.stream.Close()
}

// ask sends a query to the host and says whether it did. Its answer goes to the function, which must not wait.
func (r *resolver) ask(query []byte, tcp bool, answer func([]byte)) bool {
	r.mu.Lock()
	if len(r.waiting) >= maxQueries {
		r.mu.Unlock()
		return false
	}
	r.last++
	n := r.last
	r.waiting[n] = answer
	r.mu.Unlock()
	r.writing.Lock()
	err := names.Write(r.stream, &names.Frame{Number: n, TCP: tcp, Message: query})
	r.writing.Unlock()
	return err == nil
}

// answers hands out what the host answers, until the stream ends. Every query has one, if an empty one.
func (r *resolver) answers() {
	in := bufio.NewReader(r.stream)
	for {
		f, err := names.Read(in)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				complain("name server: %v", err)
			}
			return
		}
		r.mu.Lock()
		answer := r.waiting[f.Number]
		delete(r.waiting, f.Number)
		r.mu.Unlock()
		if answer != nil {
			answer(f.Message)
		}
	}
}

// datagrams serves UDP.
func (r *resolver) datagrams() {
	b := make([]byte, names.MaxMessage)
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		query := append([]byte(nil), b[:n]...)
		r.ask(query, false, func(answer []byte) {
			if len(answer) == 0 {
				answer = serverFailure(query)
			}
			if answer != nil {
				r.udp.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// connections serves TCP.
func (r *resolver) connections() {
	for {
		select {
		case r.askers <- struct{}{}:
		case <-r.over:
			return
		}
		conn, err := r.tcp.Accept()
		if err != nil {
			return
		}
		guard("name server", func() {
			defer func() { conn.Close(); <-r.askers }()
			r.converse(conn)
		})
	}
}

// converse serves one connection: each message is preceded by its length (RFC 1035, section 4.2.2).
func (r *resolver) converse(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		conn.SetDeadline(time.Now().Add(askerTime))
		var length [2]byte
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(in, query); err != nil {
			return
		}
		answered := make(chan []byte, 1)
		if !r.ask(query, true, func(answer []byte) { answered <- answer }) {
			return
		}
		select {
		case answer := <-answered:
			if len(answer) == 0 {
				answer = serverFailure(query)
			}
			if answer == nil {
				return
			}
			if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
				return
			}
		case <-r.over:
			return
		}
	}
}

// serverFailure is the answer that a server failure has happened (RFC 1035, section 4.1.1), or nil to what is no query.
func serverFailure(query []byte) []byte {
	const (
		header    = 12
		response  = 0x80 // in the third byte
		available = 0x80 // recursion, in the fourth
		failed    = 2
	)
	if len(query) < header || query[2]&response != 0 {
		return nil
	}
	answer := append([]byte(nil), query...)
	answer[2] |= response
	answer[3] = answer[3]&0x70 | available | failed
	return answer
}
