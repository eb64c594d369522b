package agent_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	api "manis/api/agent"
)

func TestStdinToStdout(t *testing.T) {
	m := theMachine(t)
	_, p := m.start(t, command("cat"), nil)
	for i := range 3 {
		fmt.Fprintf(p.stdin, "line %d\n", i)
		p.stdout.await(t, fmt.Sprintf("line %d\n", i))
	}
	p.stdin.Close()
	if r := p.wait(); r.stdout != "line 0\nline 1\nline 2\n" || r.ExitCode != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestStdinThatNobodyReads(t *testing.T) {
	m := theMachine(t)
	_, p := m.start(t, sh("head -c 3; exit 5"), nil)
	go p.stdin.Write(make([]byte, 4<<20))
	if r := p.wait(); r.ExitCode != 5 || r.stdout != "\x00\x00\x00" {
		t.Errorf("exit code %d, output %q", r.ExitCode, r.stdout)
	}
}

func TestNoStreams(t *testing.T) {
	m := theMachine(t)
	box, proc, err := m.create(t, sh("cat; echo lost; ls -l /proc/self/fd/0 >/tmp/fd; grep -q null /tmp/fd || exit 9"), func(r *api.CreateContainerRequest) {
		r.Process.Stdin, r.Process.Stdout, r.Process.Stderr = 0, 0, 0
	})
	if err != nil {
		t.Fatal(err)
	}
	proc.stdin.Close()
	if _, err := m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id}); err != nil {
		t.Fatal(err)
	}
	reply, err := m.agent.Wait(deadline(t), &api.WaitRequest{Id: box.id})
	if err != nil || reply.ExitCode != 0 {
		t.Errorf("got %v, %v", reply, err)
	}
}

// pipeMegabytes is how much goes through a pipe by default; the promise is
// kept for MANIS_PIPE_MB=1024 as well.
func pipeMegabytes() int {
	n := 64
	fmt.Sscan(os.Getenv("MANIS_PIPE_MB"), &n)
	return n
}

func TestBigPipeArrivesIntact(t *testing.T) {
	m := theMachine(t)
	size := int64(pipeMegabytes()) << 20
	// The host's stdin goes through cat and back, both ways at once.
	in, out := sha256.New(), sha256.New()
	stream, token, err := m.host.Stream()
	if err != nil {
		t.Fatal(err)
	}
	p := command("cat")
	p.Stdout = token
	_, proc := m.start(t, p, nil)
	start, cpu := time.Now(), m.cpu()
	go func() {
		defer proc.stdin.Close()
		source := rand.New(rand.NewPCG(1, 2))
		buf := make([]byte, 64<<10)
		for left := size; left > 0; left -= int64(len(buf)) {
			for i := 0; i < len(buf); i += 8 {
				binary.LittleEndian.PutUint64(buf[i:], source.Uint64())
			}
			in.Write(buf)
			if _, err := proc.stdin.Write(buf); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	n, err := io.Copy(out, stream)
	stream.Close()
	if err != nil || n != size {
		t.Fatalf("%d of %d bytes arrived: %v", n, size, err)
	}
	if !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Error("the bytes arrived changed")
	}
	t.Logf("%d MiB in and out in %v, %v of QEMU's CPU", size>>20, time.Since(start).Round(time.Millisecond), m.cpu()-cpu)
	proc.wait()
}

func TestBackgroundChildDoesNotHoldAnExec(t *testing.T) {
	m := theMachine(t)
	c, first := m.start(t, sh("echo up; sleep 1000"), nil)
	first.stdout.await(t, "up")
	start := time.Now()
	r := c.exec(sh("echo before; (sleep 100; echo never) & echo after"))
	if r.stdout != "before\nafter\n" {
		t.Errorf("output %q", r.stdout)
	}
	if d := time.Since(start); d > 50*time.Second {
		t.Errorf("Wait took %v for a background child", d)
	}
	// The child lives on.
	if r := c.exec(sh("ps -o args | grep -c '^sleep 100$'")); strings.TrimSpace(r.stdout) == "0" {
		t.Errorf("the background child was killed")
	}
	first.stdin.Close()
}

func TestStoppedReaderStopsTheContainer(t *testing.T) {
	m := theMachine(t)
	p := sh("i=0; while true; do head -c 65536 /dev/zero; i=$((i+1)); echo $i >/tmp/count; done")
	stream, token, err := m.host.Stream()
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	p.Stdout = token
	c, proc := m.start(t, p, nil)
	proc.stdin.Close()
	count := func() string { return c.exec(command("cat", "/tmp/count")).stdout }
	// Two looks at which nothing has changed: it stands still.
	last := "never"
	for now := count(); now != last; now = count() {
		last = now
	}
	var blocks int
	fmt.Sscan(last, &blocks)
	// A window, a pipe and the buffers between them.
	if blocks*65536 > 2<<20 {
		t.Errorf("%d bytes were taken from a container whose output nobody reads", blocks*65536)
	}
	// What was written arrives when it is read on.
	if n, err := io.CopyN(io.Discard, stream, 8<<20); err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
	// A host that closes its end wants no more: the container runs on without it.
	stream.Close()
	before := count()
	for now := count(); now == before; now = count() {
	}
}

func TestTerminal(t *testing.T) {
	m := theMachine(t)
	p := sh(`tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; ls -l /dev/console | cut -c1; read line; echo "got $line"; stty size; trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done`)
	p.Terminal, p.Rows, p.Columns = true, 33, 101
	c, proc := m.start(t, p, nil)
	proc.stdout.await(t, "all")
	if _, err := m.agent.Resize(deadline(t), &api.ResizeRequest{Id: c.id, Rows: 44, Columns: 55}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(proc.stdin, "word\n")
	proc.stdout.await(t, "ready")
	io.WriteString(proc.stdin, "\x03") // the line discipline makes it a signal
	reply, err := m.agent.Wait(deadline(t), &api.WaitRequest{Id: c.id})
	if err != nil {
		t.Fatal(err)
	}
	out := strings.ReplaceAll(proc.stdout.String(), "\r", "")
	for _, want := range []string{"/dev/pts/0\n", "33 101\n", "all\n", "c\n", "got word\n", "44 55\n", "interrupted\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("output %q lacks %q", out, want)
		}
	}
	if reply.ExitCode != 3 {
		t.Errorf("exit code %d", reply.ExitCode)
	}
	if _, err := m.agent.Resize(deadline(t), &api.ResizeRequest{Id: c.id, Rows: 44, Columns: 55}); err == nil {
		t.Error("resize after the end succeeded")
	}
}

// The size that comes with the start, later than the container, is there before the
// process's first instruction.
func TestTerminalSizeComesWithTheStart(t *testing.T) {
	m := theMachine(t)
	p := command("stty", "size")
	p.Terminal, p.Rows, p.Columns = true, 33, 101
	c, proc, err := m.create(t, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: c.id, Rows: 44, Columns: 55}); err != nil {
		t.Fatal(err)
	}
	if r := proc.wait(); r.stdout != "44 55\r\n" {
		t.Errorf("output %q", r.stdout)
	}
}

func TestTerminalOutputIsComplete(t *testing.T) {
	m := theMachine(t)
	p := sh("seq 1 20000")
	p.Terminal = true
	_, proc := m.start(t, p, nil)
	r := proc.wait()
	lines := strings.Split(strings.ReplaceAll(r.stdout, "\r", ""), "\n")
	if len(lines) != 20001 || lines[19999] != "20000" {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

func TestUserOpensItsStreams(t *testing.T) {
	m := theMachine(t)
	p := sh("echo one >/dev/stdout; echo two >/dev/stderr; cat /dev/stdin")
	p.User = "user"
	_, proc := m.start(t, p, nil)
	io.WriteString(proc.stdin, "three\n")
	proc.stdin.Close()
	if r := proc.wait(); r.stdout != "one\nthree\n" || r.stderr != "two\n" {
		t.Errorf("got %q, %q", r.stdout, r.stderr)
	}
}

func TestTwoWaits(t *testing.T) {
	m := theMachine(t)
	c, proc := m.start(t, sh("read x; exit 6"), nil)
	codes := make(chan uint32, 2)
	for range 2 {
		go func() {
			reply, err := m.agent.Wait(deadline(t), &api.WaitRequest{Id: c.id})
			if err != nil {
				t.Error(err)
			}
			codes <- reply.GetExitCode()
		}()
	}
	proc.stdin.Close()
	for range 2 {
		if code := <-codes; code != 6 {
			t.Errorf("exit code %d", code)
		}
	}
	// And one after the end.
	if r := proc.wait(); r.ExitCode != 6 {
		t.Errorf("exit code %d", r.ExitCode)
	}
}
