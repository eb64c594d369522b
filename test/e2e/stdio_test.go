package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestStdio(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("stdin to its end", func(t *testing.T) {
		t.Parallel()
		if r := w.in(t).manisIn("one\ntwo\n", "run", "--rm", "-i", "box", "cat"); r.stdout != "one\ntwo\n" || r.code != 0 {
			t.Error(r)
		}
	})
	t.Run("no stdin without -i", func(t *testing.T) {
		t.Parallel()
		if r := w.in(t).manisIn("one\n", "run", "--rm", "box", "cat"); r.stdout != "" || r.code != 0 {
			t.Error(r)
		}
	})
	t.Run("two streams", func(t *testing.T) {
		t.Parallel()
		r := w.in(t).manis("run", "--rm", "-q", "box", "sh", "-c", "echo out; echo err >&2")
		if r.stdout != "out\n" || !strings.Contains(r.stderr, "err\n") {
			t.Error(r)
		}
	})
	t.Run("output of a short life", func(t *testing.T) {
		t.Parallel()
		// All of it arrives, though the process has long ended when it is read.
		if r := w.in(t).manis("run", "--rm", "box", "seq", "1", "50000"); len(r.stdout) != 288894 || !strings.HasSuffix(r.stdout, "\n50000\n") {
			t.Errorf("%d bytes arrived", len(r.stdout))
		}
	})
}

// streamBytes is how much goes through the pipes: the promised gigabyte takes a while under
// emulation.
func streamBytes() int64 {
	if long {
		return 1 << 30
	}
	return 48 << 20
}

// hashing is a writer that sums and counts what it is given.
type hashing struct {
	sum interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func newHashing() *hashing { return &hashing{sum: sha256.New()} }

func (h *hashing) Write(b []byte) (int, error) {
	h.n += int64(len(b))
	return h.sum.Write(b)
}

func (h *hashing) String() string { return hex.EncodeToString(h.sum.Sum(nil)) }

// Data of any bytes goes through a container's stdin and stdout and arrives complete and
// unchanged, in bounded memory.
func TestLargeStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sleep", "1000")
	monitor, _ := w.vm("c")
	for _, c := range []struct {
		name string
		args []string
	}{
		{"exec", []string{"exec", "-i", "c", "cat"}},
		{"run", []string{"run", "--rm", "-i", "--log-driver", "none", "--name", "second", "box", "cat"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sent, received := newHashing(), newHashing()
			source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{2}), streamBytes()), sent)
			began := time.Now()
			p := w.in(t).start(func(cmd *exec.Cmd, p *running) error {
				cmd.Stdin, cmd.Stdout, cmd.Stderr = source, received, p.err
				return nil
			}, c.args...)
			r := p.wait()
			if r.code != 0 || sent.n != streamBytes() || received.n != sent.n || received.String() != sent.String() {
				t.Errorf("sent %d bytes, received %d, the sums are %s and %s: %s", sent.n, received.n, sent, received, r)
			}
			t.Logf("%d MiB in %v, %.0f MiB/s", received.n>>20, time.Since(began).Round(time.Millisecond), float64(received.n>>20)/time.Since(began).Seconds())
		})
	}
	if _, peak := residentBytes(monitor); peak > boundedMemory {
		t.Errorf("the monitor takes %d MiB", peak>>20)
	}
	t.Run("sum in the guest", func(t *testing.T) {
		// What the guest got, not only what came back.
		sent := newHashing()
		source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{3}), 16<<20), sent)
		p := w.in(t).start(func(cmd *exec.Cmd, p *running) error {
			cmd.Stdin, cmd.Stdout, cmd.Stderr = source, p.out, p.err
			return nil
		}, "exec", "-i", "c", "sha256sum")
		if r := p.wait(); !strings.HasPrefix(r.stdout, sent.String()) {
			t.Errorf("the guest has %s, sent was %s", r, sent)
		}
	})
}
