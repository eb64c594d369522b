package wire_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/containerd/ttrpc"

	"manis/api/agent"
	"manis/api/wire"
)

// frame is one of yamux: kind is 0 for data, 1 for a window, 2 for a ping, 3 for the end.
func frame(kind byte, flags uint16, stream, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

// data is a frame of data on a stream.
func data(stream uint32, b []byte) []byte {
	return append(frame(0, 0, stream, uint32(len(b))), b...)
}

// answer is a message of ttrpc.
func answer(kind byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(append(b, kind, 0), payload...)
}

// response is the answer that carries a message.
func response(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := proto.Marshal(&ttrpc.Response{Payload: payload})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// opening is how an agent accepts the control stream: it is the first.
var opening = frame(1, 2, 1, 0)

// hear makes one request of an agent that says these bytes and nothing else, and never reads more than the pipe
// holds; it returns the answer and the session.
func hear(tb testing.TB, said ...[]byte) (*agent.StatsResponse, *wire.Client, error) {
	tb.Helper()
	here, there := net.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	tb.Cleanup(cancel)
	tb.Cleanup(func() { there.Close() })
	asked := make(chan struct{})
	go func() {
		// The opening, the token and the request.
		b := make([]byte, 64<<10)
		for n := 0; n < 12+12+8+12+10; {
			k, err := there.Read(b)
			if err != nil {
				break
			}
			n += k
		}
		close(asked)
		io.Copy(io.Discard, there)
	}()
	go func() {
		<-asked
		for _, b := range said {
			if _, err := there.Write(b); err != nil {
				break
			}
		}
		there.Close()
	}()
	client, err := wire.NewClient(here)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close() })
	r, err := agent.NewAgentClient(client.Control()).Stats(ctx, &agent.ContainerRef{Id: "c"})
	if ctx.Err() != nil {
		tb.Fatal("the request waits on")
	}
	return r, client, err
}

// What answers is let through; this is the control of the test below.
func TestAnswerPasses(t *testing.T) {
	want := &agent.StatsResponse{MemoryBytes: 7, MemoryStat: map[string]uint64{"anon": 3}}
	r, client, err := hear(t, opening, data(1, answer(2, 1, response(t, want))))
	if err != nil || !proto.Equal(r, want) {
		t.Fatalf("%v, %v", r, err)
	}
	<-client.Done()
	if err := client.Err(); err != nil {
		t.Errorf("an agent that did nothing wrong: %v", err)
	}
}

// Whatever an agent sends that does not answer ends the session, with the reason.
func TestWhatDoesNotAnswerEndsTheSession(t *testing.T) {
	good := answer(2, 1, response(t, &agent.StatsResponse{}))
	for name, c := range map[string]struct {
		said []byte
		why  string
	}{
		"another version":           {[]byte{9, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}, "version 9"},
		"a type that is not there":  {frame(7, 0, 1, 0), "type 7"},
		"a ping":                    {frame(2, 1, 0, 1), "a ping"},
		"the answer to no ping":     {frame(2, 2, 0, 1), "a ping"},
		"a stream of its own":       {frame(1, 1, 2, 0), "opened a stream"},
		"a stream with our numbers": {frame(0, 1, 3, 0), "opened a stream"},
		"data for a later stream":   {data(3, []byte("x")), "stream 3"},
		"data for stream 0":         {data(0, []byte("x")), "stream 0"},
		"a window for a later one":  {frame(1, 0, 99, 1), "stream 99"},
		"a huge frame":              {frame(0, 0, 1, 1<<31), "2147483648 bytes"},
		"a request":                 {data(1, answer(1, 1, nil)), "type 1"},
		"a piece of a stream":       {data(1, answer(3, 1, nil)), "type 3"},
		"an answer to nothing":      {data(1, answer(2, 77, nil)), "not asked"},
		"two answers to one":        {append(data(1, good), data(1, good)...), "not asked"},
		"a huge answer":             {data(1, answer(2, 1, nil)[:0:0]), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a huge answer" {
				head := answer(2, 1, nil)
				binary.BigEndian.PutUint32(head, wire.MaxAnswer+1)
				c.said, c.why = data(1, head), "1048577 bytes"
			}
			_, client, _ := hear(t, opening, c.said)
			select {
			case <-client.Done():
			case <-time.After(time.Minute):
				t.Fatal("the session goes on")
			}
			if err := client.Err(); !errors.Is(err, wire.ErrProtocol) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("ended with %v, want %q", err, c.why)
			}
		})
	}
}

// An agent that sends pings without end, or opens streams, and never reads makes nothing grow.
func TestFloodOfAnAgentThatDoesNotRead(t *testing.T) {
	for name, one := range map[string][]byte{"pings": frame(2, 1, 0, 1), "streams": frame(1, 1, 2, 0)} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe() // nobody reads there: the first write from here waits
			defer there.Close()
			before := runtime.NumGoroutine()
			opened := make(chan *wire.Client, 1)
			go func() {
				c, _ := wire.NewClient(here)
				opened <- c
			}()
			sent := 0
			for there.SetWriteDeadline(time.Now().Add(10 * time.Second)); sent < 5000; sent++ {
				if _, err := there.Write(one); err != nil {
					break
				}
			}
			if sent == 5000 {
				t.Errorf("%d %s were taken, and %d goroutines came", sent, name, runtime.NumGoroutine()-before)
			}
			there.Close() // what still waits to be sent ends
			if c := <-opened; c != nil {
				c.Close()
			}
		})
	}
}

// FuzzAnswers lets an agent say anything at all. The seeds begin what it says in the right way.
func FuzzAnswers(f *testing.F) {
	ok := response(f, &agent.StatsResponse{MemoryBytes: 7, MemoryStat: map[string]uint64{"anon": 3}})
	failed, err := proto.Marshal(&ttrpc.Response{Payload: []byte{0xff}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(append([]byte{}, opening...), data(1, answer(2, 1, ok))...))
	f.Add(append(append([]byte{}, opening...), data(1, answer(2, 1, failed))...))
	f.Add(append(append([]byte{}, opening...), data(1, answer(2, 3, ok))...))
	f.Add(append(append([]byte{}, opening...), data(1, answer(3, 1, ok))...))
	f.Add(append(append([]byte{}, opening...), frame(0, 4, 1, 0)...))
	f.Add(append(append([]byte{}, opening...), frame(1, 8, 1, 1<<31)...))
	f.Add(frame(1, 1, 2, 0))
	f.Add(frame(2, 1, 0, 0))
	f.Add(frame(3, 0, 0, 2))
	f.Fuzz(func(t *testing.T, said []byte) {
		r, client, err := hear(t, said)
		if (r != nil) == (err != nil) {
			t.Errorf("an answer %v with the error %v", r, err)
		}
		client.Close()
		<-client.Done()
		if err := client.Err(); err != nil && !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("ended with %v", err)
		}
	})
}
