package pool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/container"
	"manis/place"
)

// serve answers for b at its socket, and returns that.
func (b *bench) serve() string {
	b.t.Helper()
	path := filepath.Join(b.top, place.PoolSocketName)
	l, err := Listen(path)
	check(b.t, err)
	b.serveAt(l)
	return path
}

func (b *bench) serveAt(l net.Listener) {
	done := make(chan error, 1)
	go func() { done <- b.Serve(b.ctx, l) }()
	stop := b.stop
	b.stop = func() {
		stop()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	}
}

func TestMissesAreHeard(t *testing.T) {
	b := newBench(t, usual(0, 4))
	path := b.serve()
	Miss(b.Dir, config(0))
	Miss(b.Dir, config(gigabyte))
	s := b.await("machines", func(s State) bool { return len(s.Sizes) == 2 && s.Sizes[0].Waiting == 1 && s.Sizes[1].Waiting == 1 })
	got, err := Ask(context.Background(), path)
	check(t, err)
	if got.Sizes[1].Kind != s.Sizes[1].Kind || got.Sizes[1].Misses != 1 || got.Sizes[1].PIDs[0] != s.Sizes[1].PIDs[0] {
		t.Errorf("%+v", got)
	}
}

// A pool that does not listen, or is dead, or not there costs a start nothing.
func TestMissWaitsForNobody(t *testing.T) {
	top := t.TempDir()
	dir, path := filepath.Join(top, "pool"), filepath.Join(top, place.PoolSocketName)
	Miss(dir, config(0)) // none
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(t, unix.Listen(fd, 1))
	for range 100 { // more than it holds
		Miss(dir, config(0))
	}
	unix.Close(fd) // as if it was killed
	check(t, os.Mkdir(dir, 0o700))
	Miss(dir, config(0))
	for _, p := range []string{path, dir} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", p)
		}
	}
}

func TestBadMisses(t *testing.T) {
	b := newBench(t, usual(0, 1))
	path := b.serve()
	for name, body := range map[string]string{
		"no JSON":    "x",
		"too long":   `{"accel": "` + strings.Repeat("x", maxMiss) + `"}`,
		"accel":      `{"accel": "magic"}`,
		"long set":   `{"cpuSet": "` + strings.Repeat("1,", 200) + `"}`,
		"impossible": `{"cpuSet": "0-4000"}`,
	} {
		if got := post(t, path, body); got != http.StatusBadRequest {
			t.Errorf("%s: status %d", name, got)
		}
	}
	if got := post(t, path, `{"memoryBytes": 1073741824}`); got != http.StatusNoContent {
		t.Errorf("status %d", got)
	}
	if s := b.now(); len(s.Sizes) != 2 {
		t.Errorf("%+v", s.Sizes)
	}
}

func client(path string) *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
}

func post(t *testing.T, path, body string) int {
	t.Helper()
	response, err := client(path).Post("http://manisd/missed", "application/json", strings.NewReader(body))
	check(t, err)
	response.Body.Close()
	return response.StatusCode
}

func FuzzMiss(f *testing.F) {
	f.Add([]byte(`{"accel":"tcg","memoryBytes":104857600,"milliCPUs":1500,"cpuSet":"0-1"}`))
	f.Add([]byte(`{"memoryBytes":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg, err := parseMiss(b)
		if err == nil && (cfg.Accel == "" || !sameSize(cfg, &container.Config{Accel: cfg.Accel, Resources: cfg.Resources})) {
			t.Errorf("%q became %+v", b, cfg)
		}
	})
}

// Metrics are what Prometheus reads, on a TCP port and on the socket; nothing else is on the port.
func TestMetrics(t *testing.T) {
	b := newBench(t, usual(1, 2))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	b.serveAt(l)
	path := b.serve()
	b.waiting(1)
	b.claim()
	b.await("the claim", func(s State) bool { return s.Sizes[0].Claims == 1 && s.Sizes[0].Waiting == 1 })
	Miss(b.Dir, config(0))
	b.await("the miss", func(s State) bool { return s.Sizes[0].Misses == 1 })
	overTCP := scrape(t, http.DefaultClient, "http://"+l.Addr().String()+"/metrics")
	overSocket := scrape(t, client(path), "http://manisd/metrics")
	const size = `{size="2cpu-512MiB-tcg"}`
	for name, want := range map[string]string{
		"manis_pool_claims_total" + size:                                       "1",
		"manis_pool_misses_total" + size:                                       "1",
		`manis_pool_misses_total{size="other"}`:                                "0",
		"manis_pool_max" + size:                                                "2",
		"manis_pool_wanted" + size:                                             "2",
		`manis_pool_claim_seconds_bucket{size="2cpu-512MiB-tcg",le="0.0001"}`:  "0",
		`manis_pool_claim_seconds_bucket{size="2cpu-512MiB-tcg",le="0.00025"}`: "1",
		`manis_pool_claim_seconds_bucket{size="2cpu-512MiB-tcg",le="+Inf"}`:    "1",
		"manis_pool_claim_seconds_sum" + size:                                  "0.0002",
		"manis_pool_memory_budget_bytes":                                       fmt.Sprint(64 * gigabyte),
	} {
		if overTCP[name] != want || overSocket[name] != want {
			t.Errorf("%s is %q over TCP and %q over the socket, want %q", name, overTCP[name], overSocket[name], want)
		}
	}
	for _, other := range []string{"/pool", "/missed", "/", "/debug/pprof/"} {
		response, err := http.Get("http://" + l.Addr().String() + other)
		check(t, err)
		response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("%s over TCP: %s", other, response.Status)
		}
	}
}

// scrape reads metrics strictly: every family is announced once, before its samples.
func scrape(t *testing.T, c *http.Client, url string) map[string]string {
	t.Helper()
	response, err := c.Get(url)
	check(t, err)
	defer response.Body.Close()
	if got := response.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		t.Errorf("type %q", got)
	}
	samples, families, family := map[string]string{}, map[string]bool{}, ""
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		if words := strings.SplitN(line, " ", 4); words[0] == "#" {
			if words[1] == "TYPE" {
				if families[words[2]] || words[2] != family {
					t.Errorf("announced twice, or without help: %s", line)
				}
				families[words[2]] = true
			}
			family = words[2]
			continue
		}
		name, value, ok := cutLast(line)
		if _, twice := samples[name]; !ok || twice || !strings.HasPrefix(name, family) {
			t.Errorf("sample of %s: %q", family, line)
		}
		samples[name] = value
	}
	return samples
}

func cutLast(s string) (string, string, bool) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// Another user gets nothing, even where the file system would let them in.
func TestOtherUsersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be two users")
	}
	b := newBench(t, usual(0, 1))
	path := b.serve()
	check(t, os.Chmod(b.top, 0o755))
	check(t, os.Chmod(path, 0o777))
	program := filepath.Join(b.top, "dial")
	in, err := os.Open("/proc/self/exe")
	check(t, err)
	defer in.Close()
	out, err := os.OpenFile(program, os.O_CREATE|os.O_WRONLY, 0o755)
	check(t, err)
	_, err = io.Copy(out, in)
	check(t, errors.Join(err, out.Close(), os.Chmod(program, 0o755)))
	for _, tt := range []struct {
		uid uint32
		ok  bool
	}{{0, true}, {65534, false}} {
		cmd := exec.Command(program, "dial", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tt.uid, Gid: tt.uid}}
		said, err := cmd.CombinedOutput()
		if (err == nil) != tt.ok {
			t.Errorf("user %d: %v, %s", tt.uid, err, said)
		}
	}
}

func TestOnePoolAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := Listen(path)
	check(t, err)
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another manisd") {
		t.Errorf("a second one: %v", err)
	}
	// Nobody has noticed the question.
	first.(*net.UnixListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if conn, err := first.Accept(); err == nil {
		conn.Close()
		t.Error("a connection was made")
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close() // as a process that is killed
	second, err := Listen(path)
	check(t, err)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	second.Close()
	if _, err := Ask(t.Context(), path); !errors.Is(err, ErrNone) {
		t.Errorf("after the end: %v", err)
	}
}

// What a miss costs a start: with a pool that listens, one that is stopped, and none.
func BenchmarkMiss(b *testing.B) {
	top := b.TempDir()
	dir, path := filepath.Join(top, "pool"), filepath.Join(top, place.PoolSocketName)
	miss := func(b *testing.B) {
		for b.Loop() {
			Miss(dir, config(gigabyte))
		}
	}
	b.Run("none", miss)
	l, err := Listen(path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.Run("stopped", miss)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	b.Run("listening", miss)
}
