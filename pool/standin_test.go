package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/container"
)

// The machines of these tests are processes without a machine: this test's binary, as `manis standby`.
// Real ones are in test/e2e.
func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == "manis":
		standIn(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "dial":
		dial(os.Args[2])
	}
	os.Exit(m.Run())
}

// dial says whether the socket at path lets this process in.
func dial(path string) {
	_, err := Ask(context.Background(), path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// standIn waits as a machine does, and ends when its claim's connection does. In the directory
// of the pool's parent, a file "fail" makes it fail, and "bytes" says how much memory it takes.
func standIn(size string) {
	top := os.Getenv("STANDIN")
	reports, idle := os.NewFile(3, "reports"), os.NewFile(4, "idle")
	if b, err := os.ReadFile(filepath.Join(top, "fail")); err == nil {
		fmt.Fprint(os.Stderr, string(b))
		os.Exit(1)
	}
	if b, err := os.ReadFile(filepath.Join(top, "bytes")); err == nil {
		n, _ := strconv.Atoi(string(b))
		_, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			os.Exit(1)
		}
	}
	var cfg container.Config
	json.Unmarshal([]byte(size), &cfg)
	kind, _ := identify(context.Background(), &cfg)
	os.MkdirAll(filepath.Join(top, "pool"), 0o700)
	path := filepath.Join(top, "pool", fmt.Sprintf("%s-%d", kind.Key, os.Getpid()))
	l, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprint(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		io.Copy(io.Discard, idle)
		l.Close()
	}()
	fmt.Fprintln(reports, ready)
	conn, err := l.Accept()
	if err != nil {
		Leave(filepath.Dir(path))
		os.Exit(1)
	}
	l.Close()
	conn.Write([]byte{1})
	fmt.Fprintln(reports, claimed, 200)
	reports.Close()
	io.Copy(io.Discard, conn)
	os.Exit(0)
}

// identify gives containers of one memory size one kind.
func identify(_ context.Context, cfg *container.Config) (Kind, error) {
	if cfg.Resources.CPUSet != "" {
		return Kind{}, fmt.Errorf("requested CPUs are not available")
	}
	bytes := max(cfg.Resources.MemoryBytes, 512<<20)
	return Kind{Key: fmt.Sprintf("%016x", bytes), MemoryBytes: bytes, VCPUs: 2, Accel: "tcg"}, nil
}

// testHost is this host, but for what a test wants it to say.
type testHost struct {
	ThisHost
	mu        sync.Mutex
	available uint64
	pressure  float64
	shared    bool // what this process's children take is not available
}

func (h *testHost) Available() (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.shared {
		return h.available, nil
	}
	taken := uint64(0)
	for _, n := range h.Memory(h.children()[os.Getpid()]) {
		taken += n
	}
	return h.available - min(taken, h.available), nil
}

func (h *testHost) Pressure() (float64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pressure, nil
}

func (h *testHost) set(available uint64, pressure float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.available, h.pressure = available, pressure
}

func (h *testHost) share() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shared = true
}

// bench is a pool of stand-ins.
type bench struct {
	*Pool
	t    *testing.T
	top  string
	host *testHost
	ctx  context.Context
	stop func() // waits for the end
	mu   sync.Mutex
	log  []string
}

const gigabyte = 1 << 30

// usual settings keep n to most machines of the default size.
func usual(n, most int) Settings {
	return Settings{Sizes: []Size{{Min: n, Max: most}}, Others: 2, OtherMax: 2, Remember: time.Hour, Budget: 64 * gigabyte, MaxPressure: 50}
}

func newBench(t *testing.T, s Settings) *bench {
	t.Helper()
	top, err := os.MkdirTemp("/tmp", "manis-pool-") // short: a socket's address holds 107 bytes
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(top) })
	b := &bench{t: t, top: top, host: &testHost{available: 64 * gigabyte}}
	b.Pool = &Pool{
		Executable: "/proc/self/exe", Dir: filepath.Join(top, "pool"), Environ: append(os.Environ(), "STANDIN="+top),
		Identify: identify, Host: b.host,
		Log: func(format string, args ...any) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.log = append(b.log, fmt.Sprintf(format, args...))
		},
	}
	b.run(s)
	t.Cleanup(func() {
		b.stop()
		// The pool does not wait for machines that were claimed.
		for end := time.Now().Add(10 * time.Second); len(b.left()) > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		for _, name := range b.left() {
			t.Errorf("left behind: %s", name)
		}
		if t.Failed() {
			t.Logf("the pool said:\n%s", b.said())
		}
	})
	return b
}

// left are the directories and sockets of the pool.
func (b *bench) left() []string {
	found, _ := filepath.Glob(filepath.Join(b.top, "pool*"))
	sockets, _ := filepath.Glob(filepath.Join(b.top, "*.sock"))
	return append(found, sockets...)
}

// run keeps the pool until b.stop.
func (b *bench) run(s Settings) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		b.Run(ctx, s)
		close(done)
	}()
	b.ctx = ctx
	b.stop = func() {
		cancel()
		<-done
	}
}

func (b *bench) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.log, "\n")
}

func (b *bench) file(name, content string) {
	b.t.Helper()
	check(b.t, os.WriteFile(filepath.Join(b.top, name), []byte(content), 0o600))
}

func (b *bench) now() State {
	b.t.Helper()
	s, err := b.State(b.ctx)
	check(b.t, err)
	return s
}

// await waits for a state.
func (b *bench) await(what string, is func(State) bool) State {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if s := b.now(); is(s) {
			return s
		}
	}
	b.t.Fatalf("waited in vain for %s: %+v", what, b.now())
	return State{}
}

// waiting waits until so many machines of the first size wait.
func (b *bench) waiting(n int) State {
	b.t.Helper()
	return b.await(fmt.Sprint(n, " machines to wait"), func(s State) bool {
		return len(s.Sizes) > 0 && s.Sizes[0].Waiting == n && !s.Sizes[0].Making
	})
}

// claim takes a machine, which ends with the test.
func (b *bench) claim() net.Conn {
	b.t.Helper()
	sockets, _ := filepath.Glob(filepath.Join(b.Dir, "[0-9a-f]*-*"))
	for _, path := range sockets {
		conn, err := net.Dial("unix", path)
		if err != nil {
			continue
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
			b.t.Cleanup(func() { conn.Close() })
			return conn
		}
		conn.Close()
	}
	b.t.Fatalf("no machine took the claim: %v", sockets)
	return nil
}

func config(memory uint64) *container.Config {
	return &container.Config{Resources: container.Resources{MemoryBytes: memory}}
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
