package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	api "manis/api/agent"
)

const (
	// maxHooks bounds the hooks of a container.
	maxHooks = 64
	// maxComplaint is how much of the end of a hook's standard error is kept, bytes.
	maxComplaint = 1024
	// complaintTime is how long a hook that has ended may leave its standard error to
	// children of its own.
	complaintTime = 100 * time.Millisecond
)

// runHooks runs the container's start hooks in the namespaces of its first process,
// which waits to execute; pid is its number in the agent's PID namespace. It stops at the first
// that fails.
func (c *container) runHooks(ctx context.Context, pid int) error {
	state, err := c.hookState(pid)
	if err != nil {
		return err
	}
	first, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open the first process: %w", err)
	}
	defer unix.Close(first)
	for _, h := range c.request.StartHooks {
		if err := c.runHook(ctx, h, state, first); err != nil {
			return fail(codes.Aborted, fmt.Errorf("startContainer hook %s: %w", h.Path, err))
		}
	}
	return nil
}

// hookState completes the state that the host has given with what the agent alone knows: the
// number of the first process in its own PID namespace.
func (c *container) hookState(pid int) (string, error) {
	head := strings.TrimSuffix(strings.TrimSpace(c.request.HookState), "}")
	if head == "" {
		head = "{"
	}
	if !strings.HasSuffix(head, "{") {
		head += ","
	}
	b, err := readFileAt(procDir, strconv.Itoa(pid)+"/status", 65536)
	if err != nil {
		return "", err
	}
	inside := pid
	for line := range strings.Lines(string(b)) {
		if list, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(list)
			inside, _ = strconv.Atoi(f[len(f)-1])
		}
	}
	// A container's id has no characters that JSON would write otherwise.
	return fmt.Sprintf(`%s"id":%s,"pid":%d}`, head, strconv.Quote(c.id), inside), nil
}

// runHook runs one as the container's user, with its rights, and waits for its end.
func (c *container) runHook(ctx context.Context, h *api.Hook, state string, first int) error {
	if !path.IsAbs(h.Path) {
		return errors.New("its path is not absolute")
	}
	if h.TimeoutSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(h.TimeoutSeconds)*time.Second,
			fmt.Errorf("it did not end within %d s", h.TimeoutSeconds))
		defer cancel()
	}
	p := proto.Clone(c.request.Process).(*api.Process)
	p.Args, p.Env, p.Terminal = h.Args, h.Env, false
	if len(p.Args) == 0 {
		p.Args = []string{h.Path}
	}
	// A file in memory, not a pipe: a hook need not read.
	in, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make its standard input: %w", err)
	}
	defer unix.Close(in)
	if _, err := unix.Pwrite(in, []byte(state), 0); err != nil {
		return fmt.Errorf("write its standard input: %w", err)
	}
	tail, err := newTail()
	if err != nil {
		return err
	}
	defer tail.close()

	var hook *process
	thread := newThread()
	err = thread.do(func() error {
		if err := joinContainer(first); err != nil {
			return err
		}
		std := &stdio{child: [3]int{in, nullFile, tail.writer()}}
		var err error
		hook, err = c.spawn(ctx, start{Process: p, path: h.Path, of: first, io: std})
		return err
	})
	thread.end()
	tail.started()
	if err != nil {
		return err
	}
	guard("wait for hook", func() {
		defer close(hook.done)
		hook.reap()
	})
	select {
	case <-hook.done:
	case <-ctx.Done():
		hook.signal(unix.SIGKILL)
		<-hook.done
		err = context.Cause(ctx)
	case <-c.ending:
		hook.signal(unix.SIGKILL)
		<-hook.done
		err = errors.New("the container is being removed")
	}
	hook.pidfd.Close()
	if err != nil {
		return err
	}
	switch line := tail.lastLine(); {
	case hook.status.Signaled():
		return fmt.Errorf("it was killed by signal %d%s", hook.status.Signal(), line)
	case hook.status.ExitStatus() != 0:
		return fmt.Errorf("exit status %d%s", hook.status.ExitStatus(), line)
	}
	return nil
}

// tail keeps the end of what is written to a pipe.
type tail struct {
	r, w *os.File
	done chan struct{}

	mu  sync.Mutex
	end []byte
}

func newTail() (*tail, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	t := &tail{r: r, w: w, done: make(chan struct{})}
	guard("read standard error of hook", t.read)
	return t, nil
}

// writer is the descriptor to write to, until started.
func (t *tail) writer() int { return int(t.w.Fd()) }

// started leaves the writing to others.
func (t *tail) started() { t.w.Close() }

func (t *tail) read() {
	defer close(t.done)
	buf := make([]byte, 4096)
	for {
		n, err := t.r.Read(buf)
		t.mu.Lock()
		t.end = append(t.end, buf[:n]...)
		t.end = append([]byte(nil), t.end[max(0, len(t.end)-maxComplaint):]...)
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// lastLine is what is to follow an error.
func (t *tail) lastLine() string {
	select {
	case <-t.done:
	case <-time.After(complaintTime):
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	text := trim(t.end)
	if text == "" {
		return ""
	}
	return ": " + strings.ToValidUTF8(text[strings.LastIndexByte(text, '\n')+1:], "?")
}

// close ends the reading.
func (t *tail) close() {
	t.w.Close()
	t.r.Close()
	<-t.done
}
