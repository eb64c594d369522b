package stage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandTime bounds one command. A start under emulation takes two or three seconds, on
// a busy machine several times that.
const commandTime = 2 * time.Minute

// Engine is an engine's command line.
type Engine struct {
	Args []string // the program, and what comes before every verb
	Env  []string
	Dir  string
	// Credential is who calls; nil: who runs the tests.
	Credential *syscall.Credential
}

// Result is what a command said.
type Result struct {
	Out, Err string
	Code     int
}

func (r Result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.Code, clip(r.Out), clip(r.Err))
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:1000] + "\n...\n" + s[len(s)-1000:]
	}
	return s
}

// Command returns a command that ends with the context.
func (e *Engine) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.Args[0], append(e.Args[1:len(e.Args):len(e.Args)], args...)...)
	cmd.Env, cmd.Dir = e.Env, e.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: e.Credential}
	// What it leaves in the background may hold its output open.
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Run runs a command to its end.
func (e *Engine) Run(t testing.TB, args ...string) Result { return e.Feed(t, "", args...) }

// Feed runs a command with an input.
func (e *Engine) Feed(t testing.TB, input string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := e.Command(ctx, args...)
	var out, err bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &err
	failure := cmd.Run()
	if ctx.Err() != nil {
		t.Errorf("%s did not end within %s", strings.Join(args, " "), commandTime)
	}
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), failure)
	}
	return Result{out.String(), err.String(), cmd.ProcessState.ExitCode()}
}

// OK runs a command that must succeed and returns its output without the last line end.
func (e *Engine) OK(t testing.TB, args ...string) string {
	t.Helper()
	r := e.Run(t, args...)
	if r.Code != 0 {
		t.Fatalf("%s: %s", strings.Join(args, " "), r)
	}
	return strings.TrimSuffix(r.Out, "\n")
}

// Fails runs a command that must fail with a code and with words in what it prints.
func (e *Engine) Fails(t testing.TB, code int, words string, args ...string) {
	t.Helper()
	if r := e.Run(t, args...); r.Code != code || !strings.Contains(r.Err+r.Out, words) {
		t.Errorf("%s: want exit %d and %q, got %s", strings.Join(args, " "), code, words, r)
	}
}

// Prints runs a command that must succeed and print exactly this, but for white space around it.
func (e *Engine) Prints(t testing.TB, want string, args ...string) {
	t.Helper()
	if r := e.Run(t, args...); r.Code != 0 || strings.TrimSpace(r.Out) != want {
		t.Errorf("%s: want %q, got %s", strings.Join(args, " "), want, r)
	}
}

// Terminal is a command on a terminal of 120 columns and 40 rows.
type Terminal struct {
	t      testing.TB
	cmd    *exec.Cmd
	master *os.File
	read   chan struct{}
	cancel context.CancelFunc
	once   sync.Once

	mu    sync.Mutex
	shown strings.Builder
}

// Terminal starts a command on a terminal.
func (e *Engine) Terminal(t testing.TB, args ...string) *Terminal {
	t.Helper()
	master, slave, err := openPTY()
	if err != nil {
		t.Skipf("no terminals on this machine: %v", err)
	}
	defer slave.Close()
	if e.Credential != nil {
		slave.Chown(int(e.Credential.Uid), int(e.Credential.Gid))
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	p := &Terminal{t: t, cmd: e.Command(ctx, args...), master: master, read: make(chan struct{}), cancel: cancel}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr.Setsid, p.cmd.SysProcAttr.Setctty = true, true
	if err := p.cmd.Start(); err != nil {
		cancel()
		master.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { p.End() })
	go func() {
		defer close(p.read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.shown.WriteString(strings.ReplaceAll(string(buf[:n]), "\r\n", "\n"))
			p.mu.Unlock()
			if err != nil { // EIO when the last user of the terminal is gone
				return
			}
		}
	}()
	return p
}

// Shown is all that the terminal has shown so far.
func (p *Terminal) Shown() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown.String()
}

// Type types.
func (p *Terminal) Type(s string) {
	p.t.Helper()
	if _, err := p.master.WriteString(s); err != nil {
		p.t.Fatalf("type %q: %v", s, err)
	}
}

// Resize changes the terminal's size.
func (p *Terminal) Resize(rows, columns uint16) {
	unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
}

// Await waits until the terminal has shown something.
func (p *Terminal) Await(what string) {
	p.t.Helper()
	Eventually(p.t, fmt.Sprintf("%q on the terminal", what), func() bool { return strings.Contains(p.Shown(), what) })
}

// End waits for the end of the command and returns its exit code. After a test that has failed it
// hangs up.
func (p *Terminal) End() int {
	p.once.Do(func() {
		if p.t.Failed() {
			p.cmd.Process.Signal(unix.SIGHUP)
			time.AfterFunc(5*time.Second, p.cancel)
		}
		p.cmd.Wait()
		p.cancel()
		select {
		case <-p.read:
		case <-time.After(5 * time.Second): // something in the background has it, too
		}
		p.master.Close()
	})
	return p.cmd.ProcessState.ExitCode()
}

func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	// Not by Fd, which would make reads block for good.
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var n int
	if cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120})
		}
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	return master, slave, err
}

// Eventually waits for something that other processes bring about.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(commandTime / 2); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}
