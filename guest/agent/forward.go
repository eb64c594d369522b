package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// forwardTime is how long a port of the machine's own may take to answer.
const forwardTime = 10 * time.Second

// Forward is the agent's request of this name.
func (s *service) Forward(ctx context.Context, r *api.ForwardRequest) (*api.Empty, error) {
	claim, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	stream, err := s.guest.Claim(claim, r.Stream)
	if err != nil {
		return nil, fail(codes.InvalidArgument, err)
	}
	if r.Port == 0 || r.Port > 65535 {
		stream.Close()
		return nil, fail(codes.InvalidArgument, fmt.Errorf("port %d: there is no such port", r.Port))
	}
	conn, err := dialLoopback(ctx, r.Port)
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("port %d: %w", r.Port, err)
	}
	guard("forward", func() {
		defer conn.Close()
		sent := make(chan struct{})
		guard("forward", func() {
			defer close(sent)
			io.Copy(conn, stream)
			conn.CloseWrite()
		})
		io.Copy(stream, conn)
		// Also where the host sends on what nobody reads.
		stream.Close()
		<-sent
	})
	return &api.Empty{}, nil
}

// dialLoopback connects to a program that listens at localhost, by whichever version of IP.
func dialLoopback(ctx context.Context, port uint32) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: forwardTime}
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}
