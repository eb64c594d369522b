package wire_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"manis/api/agent"
	"manis/api/wire"
)

// answers is an agent that knows its version only; every other request fails.
type answers struct{ agent.AgentService }

func (answers) Setup(context.Context, *agent.SetupRequest) (*agent.SetupResponse, error) {
	return &agent.SetupResponse{Version: wire.Version}, nil
}

// pair returns both ends of a session over a socket pair.
func pair(t *testing.T) (*wire.Client, *wire.Server) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client, err := wire.NewClient(here)
	if err != nil {
		t.Fatal(err)
	}
	server, err := wire.NewServer(there)
	if err != nil {
		t.Fatal(err)
	}
	services, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	agent.RegisterAgentService(services, answers{})
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(context.Background(), services)
	}()
	t.Cleanup(func() {
		client.Close()
		<-served
	})
	return client, server
}

func TestRequestAndStream(t *testing.T) {
	client, server := pair(t)
	resp, err := agent.NewAgentClient(client.Control()).Setup(t.Context(), &agent.SetupRequest{})
	if err != nil || resp.Version != wire.Version {
		t.Fatalf("setup: %v, %v", resp, err)
	}
	here, token, err := client.Stream()
	if err != nil {
		t.Fatal(err)
	}
	there, err := server.Claim(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	go func() {
		there.Write(want)
		there.Close()
	}()
	sum := sha256.New()
	if _, err := io.Copy(sum, here); err != nil {
		t.Fatal(err)
	}
	if got, want := sum.Sum(nil), sha256.Sum256(want); !bytes.Equal(got, want[:]) {
		t.Error("the stream arrived changed")
	}
	// Closed in one direction, open in the other.
	if _, err := here.Write([]byte("still")); err != nil {
		t.Errorf("write after the other side closed its direction: %v", err)
	}
}

func TestReaderThatStopsStopsItsWriterOnly(t *testing.T) {
	client, server := pair(t)
	_, token, err := client.Stream()
	if err != nil {
		t.Fatal(err)
	}
	stuck, err := server.Claim(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	var written atomic.Int64
	go func() {
		for buf := make([]byte, 64<<10); ; {
			n, err := stuck.Write(buf)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	// The writer comes to a halt: two looks with the same number, while the
	// session answers in between.
	last := int64(-1)
	for now := written.Load(); now != last || now == 0; now = written.Load() {
		last = now
		for range 20 {
			if _, err := agent.NewAgentClient(client.Control()).Setup(t.Context(), &agent.SetupRequest{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	if last > 1<<20 {
		t.Errorf("%d bytes were taken for a reader that does not read", last)
	}
}

func TestClaim(t *testing.T) {
	client, server := pair(t)
	if _, err := server.Claim(t.Context(), 0); err == nil {
		t.Error("the control stream could be claimed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := server.Claim(ctx, 99); !errors.Is(err, context.Canceled) {
		t.Errorf("claim of a stream that never comes: %v", err)
	}
	client.Close()
	if _, err := server.Claim(t.Context(), 99); err == nil {
		t.Error("claim succeeded after the session's end")
	}
}

func TestUnclaimedStreamsAreBounded(t *testing.T) {
	client, server := pair(t)
	// More than the bound; those beyond it are closed, and their requests are told at once.
	var tokens []uint64
	for range 5000 {
		s, token, err := client.Stream()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		tokens = append(tokens, token)
	}
	refused := 0
	for i, token := range slices.Backward(tokens) {
		if _, err := server.Claim(t.Context(), token); err != nil {
			refused++
			if i < 4096 {
				t.Fatalf("claim of stream %d among many: %v", i, err)
			}
		}
	}
	if want := 5000 - 4096; refused != want {
		t.Errorf("%d streams were refused, want %d", refused, want)
	}
}

// Streams that are opened at once are not announced in the order of their numbers.
func TestManyStreamsAtOnce(t *testing.T) {
	for range 20 {
		client, server := pair(t)
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				s, token, err := client.Stream()
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				there, err := server.Claim(t.Context(), token)
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(there, "words")
				there.Close()
				if b, err := io.ReadAll(s); err != nil || string(b) != "words" {
					t.Errorf("stream %d: %q, %v", token, b, err)
				}
			})
		}
		all.Wait()
		if err := client.Err(); err != nil || t.Failed() {
			t.Fatalf("the session ended: %v", err)
		}
	}
}

func TestDiscardedStreamsAreClosed(t *testing.T) {
	client, server := pair(t)
	for _, name := range []string{"after it arrived", "before it arrived"} {
		t.Run(name, func(t *testing.T) {
			var token uint64
			var stream net.Conn
			var err error
			if name == "before it arrived" {
				// The next stream's number: tokens count upwards.
				_, token, err = client.Stream()
				if err != nil {
					t.Fatal(err)
				}
				server.Claim(t.Context(), token)
				server.Discard(token + 1)
			}
			if stream, token, err = client.Stream(); err != nil {
				t.Fatal(err)
			}
			if name == "after it arrived" {
				// A later one arrives after it.
				_, later, err := client.Stream()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := server.Claim(t.Context(), later); err != nil {
					t.Fatal(err)
				}
				server.Discard(token)
			}
			if _, err := stream.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("read from a discarded stream: %v, want EOF", err)
			}
		})
	}
}

// counted counts the writes of at least size bytes, and all of them.
type counted struct {
	net.Conn
	all, big atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.all.Add(1)
	if len(b) >= wire.MaxFrame {
		c.big.Add(1)
	}
	return c.Conn.Write(b)
}

func TestFrameIsOneWrite(t *testing.T) {
	here, there := net.Pipe()
	conn := &counted{Conn: here}
	server, err := wire.NewServer(there)
	if err != nil {
		t.Fatal(err)
	}
	client, err := wire.NewClient(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	services, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(context.Background(), services)
	}()
	stream, token, err := client.Stream()
	if err != nil {
		t.Fatal(err)
	}
	in, err := server.Claim(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	const count = 5
	before := conn.all.Load()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range count {
			stream.Write(make([]byte, wire.MaxFrame))
		}
	}()
	if _, err := io.ReadFull(in, make([]byte, count*wire.MaxFrame)); err != nil {
		t.Fatal(err)
	}
	<-done
	if all, big := conn.all.Load()-before, conn.big.Load(); big != count || all > count+2 {
		t.Errorf("%d writes, %d of them whole frames; want %d", all, big, count)
	}
	client.Close()
	<-served
}
