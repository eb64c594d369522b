// Command agent is process 1 of the machines of a test: in the place of Manis's agent, it speaks the protocol with bad
// intent. What it does is the word after the last newline of its own file, see vices.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
	"manis/api/wire"
)

// service answers as an agent would, except where its vice is.
type service struct {
	api.AgentService // what is not here panics, which fails the request
	vice             string
	port             *port
	server           *wire.Server
	removed          chan struct{}
	once             sync.Once
}

// port lets whole frames of others through between those of the session.
type port struct {
	*os.File
	mu sync.Mutex
}

func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.File.Write(b)
}

func main() {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		unix.Mount(m[0], m[1], m[0], 0, "")
	}
	b, err := os.ReadFile("/init")
	if err != nil {
		panic(err)
	}
	s := &service{vice: string(b[bytes.LastIndexByte(b, '\n')+1:]), port: &port{File: open()}, removed: make(chan struct{})}
	if s.vice == "console" {
		c, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
		if err != nil {
			panic(err)
		}
		for range 2000 {
			fmt.Fprintf(c, "%s\x1b[31m\x1b]0;owned\a", strings.Repeat("x", 100))
		}
		time.Sleep(time.Second)
		off()
	}
	if s.server, err = wire.NewServer(s.port); err != nil {
		panic(err)
	}
	t, err := ttrpc.NewServer()
	if err != nil {
		panic(err)
	}
	api.RegisterAgentService(t, s)
	s.server.Serve(context.Background(), t)
	select {}
}

func off() { unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }

// open finds the port by name.
func open() *os.File {
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			b, _ := os.ReadFile(path)
			if strings.TrimSpace(string(b)) != "manis.agent.0" {
				continue
			}
			// It reads nothing until the host is there.
			for {
				f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR, 0)
				if err == nil {
					return f
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// frame is the head of one of yamux.
func frame(kind byte, flags uint16, stream, length uint32) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, kind}, flags)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, stream), length)
}

// message is one of ttrpc in a frame of the control stream.
func message(kind byte, stream, length uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	b = append(append(binary.BigEndian.AppendUint32(b, stream), kind, 0), payload...)
	return append(frame(0, 0, 1, uint32(len(b))), b...)
}

// floods are sent without end once a container is to be made.
var floods = map[string][]byte{
	"pings":      bytes.Repeat(frame(2, 1, 0, 1), 100),
	"streams":    bytes.Repeat(frame(1, 1, 2, 0), 100),
	"unasked":    bytes.Repeat(message(2, 9999, 0, nil), 100),
	"requests":   bytes.Repeat(message(1, 1, 0, nil), 100),
	"huge frame": frame(0, 0, 1, 1<<31),
	"huge reply": message(2, 5, 1<<31, nil),
	"noise":      bytes.Repeat([]byte{0xff, 0x5a}, 1000),
}

func (s *service) Setup(context.Context, *api.SetupRequest) (*api.SetupResponse, error) {
	r := &api.SetupResponse{Version: wire.Version, KernelRelease: "6.1", DoneNs: 1}
	switch s.vice {
	case "version":
		r.Version = 99
	case "lies":
		r.KernelRelease = "\x1b[31mred"
		r.ReadyNs, r.ReceivedNs, r.DoneNs = -1<<63, 1<<63-1, -1<<62
	}
	return r, nil
}

func (s *service) CreateContainer(_ context.Context, r *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	if flood := floods[s.vice]; flood != nil {
		for {
			if _, err := s.port.Write(flood); err != nil {
				select {}
			}
		}
	}
	reply := new(api.CreateContainerResponse)
	switch s.vice {
	case "silent":
		select {}
	case "words":
		return nil, status.Error(codes.NotFound, strings.Repeat("\x1b[31mred \u202e", 60_000))
	case "many":
		// As many elements as fit, each of them next to nothing here and much there.
		for range 700_000 {
			reply.Spans = append(reply.Spans, new(api.Span))
		}
	case "lies":
		for i := range int64(5000) {
			reply.Spans = append(reply.Spans, &api.Span{Name: "\x1b[31m" + strings.Repeat("x", 100), StartNs: i << 50, EndNs: -i << 50})
		}
	}
	// The streams of the output end, and so does the wait for them.
	for _, token := range []uint64{r.Process.Stdout, r.Process.Stderr} {
		if token != 0 {
			if c, err := s.server.Claim(context.Background(), token); err == nil {
				go func() { io.WriteString(c, "said\n"); c.Close() }()
			}
		}
	}
	return reply, nil
}

func (s *service) StartContainer(context.Context, *api.StartContainerRequest) (*api.StartResponse, error) {
	return &api.StartResponse{Pid: 1 << 31}, nil
}

func (s *service) Wait(ctx context.Context, _ *api.WaitRequest) (*api.WaitResponse, error) {
	switch s.vice {
	case "names", "honest names":
		<-s.removed
	case "lies":
		return &api.WaitResponse{ExitCode: 1<<32 - 256 + 7, Signal: 1 << 31, ExitedUnixNs: -1}, nil
	}
	return &api.WaitResponse{ExitCode: 7, Synced: true}, nil
}

// CopyOut sends one file. The other name would be a file of the user's.
func (s *service) CopyOut(ctx context.Context, r *api.CopyOutRequest) (*api.CopyOutResponse, error) {
	name := filepath.Base(r.Path)
	if s.vice == "names" {
		name = ".profile"
	}
	const body = "echo owned\n"
	if r.Stream != 0 {
		c, err := s.server.Claim(ctx, r.Stream)
		if err != nil {
			return nil, err
		}
		w := tar.NewWriter(c)
		w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body))})
		io.WriteString(w, body)
		w.Close()
		c.Close()
	}
	return &api.CopyOutResponse{Name: name, Size: uint64(len(body)), Mode: unix.S_IFREG | 0o755}, nil
}

func (s *service) Signal(context.Context, *api.SignalRequest) (*api.Empty, error) {
	return new(api.Empty), nil
}

func (s *service) RemoveContainer(context.Context, *api.ContainerRef) (*api.Empty, error) {
	s.once.Do(func() { close(s.removed) })
	return new(api.Empty), nil
}

func (s *service) Shutdown(context.Context, *api.Empty) (*api.Empty, error) {
	off()
	return nil, nil
}
