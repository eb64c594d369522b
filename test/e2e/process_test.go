package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// result is what a command did.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, clip(r.stdout), clip(r.stderr))
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:1000] + "\n...\n" + s[len(s)-1000:]
	}
	return s
}

// running is a command that was begun. Its output can be read while it runs.
type running struct {
	t        testing.TB
	name     string
	cmd      *exec.Cmd
	stdin    io.WriteCloser // nil after begin with an input
	out, err *tap
	ctx      context.Context
	cancel   context.CancelFunc
	done     chan struct{}
	exit     error
}

// begin starts a command with an input that ends.
func (w *world) begin(stdin string, args ...string) *running {
	w.t.Helper()
	return w.start(func(cmd *exec.Cmd, p *running) error {
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Stdout, cmd.Stderr = p.out, p.err
		return nil
	}, args...)
}

// open starts a command whose input the test writes and closes.
func (w *world) open(args ...string) *running {
	w.t.Helper()
	return w.start(func(cmd *exec.Cmd, p *running) (err error) {
		p.stdin, err = cmd.StdinPipe()
		cmd.Stdout, cmd.Stderr = p.out, p.err
		return err
	}, args...)
}

// start starts a command with the stdio that connect gives it. Whatever happens to the
// test, the command ends with it.
func (w *world) start(connect func(*exec.Cmd, *running) error, args ...string) *running {
	w.t.Helper()
	p := &running{t: w.t, name: "manis " + strings.Join(args, " "), done: make(chan struct{}), out: new(tap), err: new(tap)}
	p.ctx, p.cancel = context.WithTimeout(context.Background(), commandTime)
	p.cmd = w.command(p.ctx, args...)
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second
	if err := connect(p.cmd, p); err != nil {
		w.t.Fatal(err)
	}
	if err := w.launch(p.cmd); err != nil {
		w.t.Fatalf("%s: %v", p.name, err)
	}
	done := p.done // terminal puts another in its place
	go func() {
		defer close(done)
		p.exit = p.cmd.Wait()
	}()
	w.t.Cleanup(func() {
		p.cancel()
		<-p.done
	})
	return p
}

// wait returns what the command did once it has ended.
func (p *running) wait() result {
	p.t.Helper()
	<-p.done
	r := result{stdout: p.out.String(), stderr: p.err.String()}
	var exit *exec.ExitError
	switch {
	case p.ctx.Err() == context.DeadlineExceeded:
		p.t.Fatalf("%s: no end after %v\n%s", p.name, commandTime, r)
	case errors.As(p.exit, &exit):
		r.code = exit.ExitCode()
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			r.code = -int(s.Signal()) // killed, unlike a command that says 128+n
		}
	case p.exit != nil:
		p.t.Fatalf("%s: %v", p.name, p.exit)
	}
	for _, sign := range []string{"goroutine ", "panic:", "runtime error", "fatal error:"} {
		if strings.Contains(r.stderr, sign) {
			p.t.Errorf("%s panicked\n%s", p.name, r)
			break
		}
	}
	return r
}

// ended reports whether the command has ended.
func (p *running) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *running) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%s: send %v: %v", p.name, sig, err)
	}
}

func (p *running) write(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, s); err != nil {
		p.t.Fatalf("%s: write: %v", p.name, err)
	}
}

// expect waits until the command has printed words to stdout.
func (p *running) expect(words string) {
	p.t.Helper()
	p.await(p.out, words)
}

// complain waits for words on stderr.
func (p *running) complain(words string) {
	p.t.Helper()
	p.await(p.err, words)
}

func (p *running) await(out *tap, words string) {
	p.t.Helper()
	select {
	case <-out.wait(words):
		return
	case <-p.done:
	}
	if !strings.Contains(out.String(), words) {
		p.t.Fatalf("%s ended without %q\nstdout: %s\nstderr: %s", p.name, words, clip(p.out.String()), clip(p.err.String()))
	}
}

// tap keeps output and tells who waits for some of it.
type tap struct {
	mu      sync.Mutex
	kept    bytes.Buffer
	waiters map[chan struct{}]string
}

func (t *tap) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept.Write(b)
	for ch, words := range t.waiters {
		if bytes.Contains(t.kept.Bytes(), []byte(words)) {
			close(ch)
			delete(t.waiters, ch)
		}
	}
	return len(b), nil
}

func (t *tap) wait(words string) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	ch := make(chan struct{})
	if bytes.Contains(t.kept.Bytes(), []byte(words)) {
		close(ch)
		return ch
	}
	if t.waiters == nil {
		t.waiters = make(map[chan struct{}]string)
	}
	t.waiters[ch] = words
	return ch
}

func (t *tap) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept.String()
}
