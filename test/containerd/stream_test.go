package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	exit "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// protocols are those of the streaming server: what the kubelet speaks, or spoke.
var protocols = []string{"websocket", "spdy"}

// session is a client at a URL of the streaming server.
func session(ctx context.Context, protocol, at string, o remotecommand.StreamOptions) error {
	var e remotecommand.Executor
	var err error
	if protocol == "spdy" {
		var u *url.URL
		if u, err = url.Parse(at); err == nil {
			e, err = remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
		}
	} else {
		// containerd's server does not have the fifth version.
		e, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, at, "v4.channel.k8s.io")
	}
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

// screen collects what comes, while it comes.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *screen) await(t *testing.T, what string) {
	t.Helper()
	stage.Eventually(t, fmt.Sprintf("%q in %q", what, s), func() bool { return strings.Contains(s.String(), what) })
}

// sizes is a terminal that changes its size.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, more := <-s
	if !more {
		return nil
	}
	return &size
}

// TestExecStream is exec as kubectl's.
func TestExecStream(t *testing.T) {
	p := newPod(t, "execs", nil)
	id := p.start("one", nil, "sh", "-c", idle)
	exec := func(r *cri.ExecRequest) string {
		t.Helper()
		r.ContainerId = id
		answer, err := p.cri.Exec(p.ctx, r)
		if err != nil {
			t.Fatalf("Exec: %v", err)
		}
		return answer.Url
	}
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			var out, errs screen
			at := exec(&cri.ExecRequest{Cmd: []string{"sh", "-c", "echo words; echo other >&2; exit 7"}, Stdout: true, Stderr: true})
			err := session(p.ctx, protocol, at, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
			var code exit.CodeExitError
			if !errors.As(err, &code) || code.Code != 7 || out.String() != "words\n" || errs.String() != "other\n" {
				t.Errorf("%v, output %q, errors %q", err, &out, &errs)
			}
			// A megabyte there, to its end (the older protocol for web sockets knows none), and its sum back.
			input := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
			command := []string{"sha256sum"}
			if protocol != "spdy" {
				command = []string{"sh", "-c", "head -c 1048576 | sha256sum"}
			}
			var sum screen
			at = exec(&cri.ExecRequest{Cmd: command, Stdin: true, Stdout: true})
			if err := session(p.ctx, protocol, at, remotecommand.StreamOptions{Stdin: bytes.NewReader(input), Stdout: &sum}); err != nil || !strings.HasPrefix(sum.String(), fmt.Sprintf("%x", sha256.Sum256(input))) {
				t.Errorf("%v, %q", err, &sum)
			}
			// And a megabyte back.
			var back bytes.Buffer
			at = exec(&cri.ExecRequest{Cmd: []string{"sh", "-c", "yes 0123456789abcde | head -n 65536"}, Stdout: true})
			if err := session(p.ctx, protocol, at, remotecommand.StreamOptions{Stdout: &back}); err != nil || !bytes.Equal(back.Bytes(), input) {
				t.Errorf("%v, %d bytes", err, back.Len())
			}
			// A terminal and its size.
			var shown screen
			size := make(sizes, 1)
			size <- remotecommand.TerminalSize{Width: 101, Height: 31}
			typing, keys := io.Pipe()
			at = exec(&cri.ExecRequest{Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
			ended := make(chan error, 1)
			go func() {
				ended <- session(p.ctx, protocol, at, remotecommand.StreamOptions{Stdin: typing, Stdout: &shown, Tty: true, TerminalSizeQueue: size})
			}()
			stage.Eventually(t, "the terminal's size", func() bool {
				io.WriteString(keys, "stty size\n")
				time.Sleep(100 * time.Millisecond)
				return strings.Contains(shown.String(), "31 101")
			})
			size <- remotecommand.TerminalSize{Width: 90, Height: 20}
			stage.Eventually(t, "the terminal's new size", func() bool {
				io.WriteString(keys, "stty size\n")
				time.Sleep(100 * time.Millisecond)
				return strings.Contains(shown.String(), "20 90")
			})
			io.WriteString(keys, "tty; exit 3\n")
			if err := <-ended; !errors.As(err, &code) || code.Code != 3 || !strings.Contains(shown.String(), "/dev/pts/") {
				t.Errorf("%v: %q", err, &shown)
			}
			close(size)
			keys.Close()
			// A client that goes away.
			ctx, leave := context.WithCancel(p.ctx)
			at = exec(&cri.ExecRequest{Cmd: []string{"sh", "-c", "echo here; exec cat"}, Stdin: true, Stdout: true})
			waiting, _ := io.Pipe()
			var left screen
			go func() {
				ended <- session(ctx, protocol, at, remotecommand.StreamOptions{Stdin: waiting, Stdout: &left})
			}()
			left.await(t, "here")
			leave()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("a client that left: %v", err)
			}
			// Its process sees the end of its input.
			stage.Eventually(t, "the end of the process that it has left", func() bool {
				out, _ := p.exec(id, "ps")
				return !strings.Contains(out, " cat\n") && !strings.HasSuffix(out, " cat")
			})
		})
	}
	// A URL is good once, and for what it was made for.
	at := exec(&cri.ExecRequest{Cmd: []string{"true"}, Stdout: true})
	if err := session(p.ctx, "spdy", at, remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
		t.Error(err)
	}
	if err := session(p.ctx, "spdy", at, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("a URL was good twice")
	}
	at = exec(&cri.ExecRequest{Cmd: []string{"/nonesuch"}, Stdout: true})
	if err := session(p.ctx, "spdy", at, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("a program that is not there: %v", err)
	}
}

// TestAttach joins a running container, leaves it, and comes again.
func TestAttach(t *testing.T) {
	p := newPod(t, "attach", nil)
	const echo = "while read line; do echo got $line; done; echo ended; exit 4"
	attach := func(id string, tty bool) string {
		t.Helper()
		r, err := p.cri.Attach(p.ctx, &cri.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
		if err != nil {
			t.Fatalf("Attach: %v", err)
		}
		return r.Url
	}
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			id := p.start("stays"+protocol, func(c *cri.ContainerConfig) { c.Stdin = true }, "sh", "-c", echo)
			for _, word := range []string{"one", "two"} {
				ctx, leave := context.WithCancel(p.ctx)
				typing, keys := io.Pipe()
				var out screen
				ended := make(chan error, 1)
				at := attach(id, false)
				go func() {
					ended <- session(ctx, protocol, at, remotecommand.StreamOptions{Stdin: typing, Stdout: &out, Stderr: io.Discard})
				}()
				fmt.Fprintln(keys, word)
				out.await(t, "got "+word)
				leave()
				<-ended
				if s := p.status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
					t.Fatalf("after its client has left: %v", s)
				}
			}
			log, _ := os.ReadFile(filepath.Join(p.config.LogDirectory, "stays"+protocol+".log"))
			if !strings.Contains(string(log), " stdout F got one\n") || !strings.Contains(string(log), " stdout F got two\n") {
				t.Errorf("the log holds %q", log)
			}
			if protocol == "spdy" {
				attachOnce(t, p, attach, echo)
			}
			// A container's own terminal.
			tty := p.start("tty"+protocol, func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true }, "sh")
			typing, keys := io.Pipe()
			var shown screen
			size := make(sizes, 1)
			size <- remotecommand.TerminalSize{Width: 77, Height: 22}
			ended := make(chan error, 1)
			at := attach(tty, true)
			go func() {
				ended <- session(p.ctx, protocol, at, remotecommand.StreamOptions{Stdin: typing, Stdout: &shown, Tty: true, TerminalSizeQueue: size})
			}()
			stage.Eventually(t, "the terminal's size", func() bool {
				io.WriteString(keys, "stty size\n")
				time.Sleep(100 * time.Millisecond)
				return strings.Contains(shown.String(), "22 77")
			})
			io.WriteString(keys, "exit 6\n")
			<-ended
			close(size)
			stage.Eventually(t, "the container's end", func() bool { return p.status(tty).State == cri.ContainerState_CONTAINER_EXITED })
			if s := p.status(tty); s.ExitCode != 6 {
				t.Errorf("exit %d", s.ExitCode)
			}
		})
	}
}

// attachOnce joins a container whose input ends with that of its first client.
func attachOnce(t *testing.T, p *pod, attach func(id string, tty bool) string, echo string) {
	id := p.start("once", func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }, "sh", "-c", echo)
	var out screen
	if err := session(p.ctx, "spdy", attach(id, false), remotecommand.StreamOptions{Stdin: strings.NewReader("three\n"), Stdout: &out, Stderr: io.Discard}); err != nil {
		t.Error(err)
	}
	stage.Eventually(t, "the container's end", func() bool { return p.status(id).State == cri.ContainerState_CONTAINER_EXITED })
	if s := p.status(id); s.ExitCode != 4 || out.String() != "got three\nended\n" {
		t.Errorf("exit %d, output %q", s.ExitCode, &out)
	}
}

// TestPortForward reaches a pod's localhost by the streaming server.
func TestPortForward(t *testing.T) {
	p := newPod(t, "forwards", nil)
	server := p.start("server", nil, "sh", "-c", "mkdir /www; yes 0123456789abcde | head -n 65536 >/www/large; exec httpd -f -p 127.0.0.1:80 -h /www")
	// A port that does not answer ends the session.
	stage.Eventually(t, "the server", func() bool {
		_, code := p.exec(server, "wget", "-q", "-O/dev/null", "http://127.0.0.1/large")
		return code == 0
	})
	r, err := p.cri.PortForward(p.ctx, &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80, 81}})
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at),
		[]string{"127.0.0.1"}, []string{"0:80", "0:81"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.ForwardPorts() }()
	defer func() {
		close(stop)
		<-ended
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	get := func() (body []byte, err error) {
		answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/large", ports[0].Local))
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		return io.ReadAll(answer.Body)
	}
	want := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if b, err := get(); err != nil || !bytes.Equal(b, want) {
				t.Errorf("beside others: %d bytes, %v", len(b), err)
			}
		})
	}
	all.Wait()
	// Nobody listens there.
	if answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[1].Local)); err == nil {
		answer.Body.Close()
		t.Error("a port at which nobody listens answered")
	}
}
