package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/pool"
)

// This test's binary is also manisd. The machines of these tests cannot be made (there is no
// guest): what they are about is between the daemon and who starts it. Machines are in test/e2e.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_IS_MANISD") != "" {
		os.Unsetenv("TEST_IS_MANISD")
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// manager is who starts manisd: it hands over sockets and hears of it.
type testManager struct {
	t    *testing.T
	dir  string // with the sockets
	cmd  *exec.Cmd
	conn *net.UnixConn
	said bytes.Buffer
	mu   sync.Mutex
	told []string      // lines of notifications, in order
	done chan struct{} // closed at manisd's end
	end  func() error
}

func newManager(t *testing.T) *testManager {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "manisd-")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Mkdir(filepath.Join(dir, "config"), 0o700))
	m := &testManager{t: t, dir: dir}
	m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	check(t, err)
	t.Cleanup(func() { m.conn.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := m.conn.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.told = append(m.told, strings.Split(string(b[:n]), "\n")...)
			m.mu.Unlock()
		}
	}()
	return m
}

// start starts manisd with listeners as descriptors 3 and on.
func (m *testManager) start(listeners []*os.File, args ...string) {
	m.t.Helper()
	check(m.t, os.WriteFile(filepath.Join(m.dir, "manis"), []byte("#!/bin/sh\nexit 1\n"), 0o755))
	// The protocol names the process for which the sockets are: it is the same after exec.
	script := `exec "$0" "$@"`
	if listeners != nil {
		script = fmt.Sprintf(`LISTEN_PID=$$ LISTEN_FDS=%d exec "$0" "$@"`, len(listeners))
	}
	m.cmd = exec.Command("sh", append([]string{"-c", script, "/proc/self/exe"}, args...)...)
	exe, err := os.Executable()
	check(m.t, err)
	m.cmd.Args[3] = exe
	m.cmd.ExtraFiles = listeners
	m.cmd.Stderr = &m.said
	m.cmd.Env = append(os.Environ(), "TEST_IS_MANISD=1", "PATH="+m.dir+":"+os.Getenv("PATH"),
		"MANIS_ROOT="+filepath.Join(m.dir, "root"), "MANIS_RUN="+filepath.Join(m.dir, "run"), "MANIS_CONFIG="+filepath.Join(m.dir, "config"),
		"MANIS_GUEST="+filepath.Join(m.dir, "no-guest"),
		"NOTIFY_SOCKET="+filepath.Join(m.dir, "notify"), "WATCHDOG_USEC=300000")
	check(m.t, m.cmd.Start())
	cmd, done := m.cmd, make(chan struct{})
	var ended error
	go func() {
		ended = cmd.Wait()
		close(done)
	}()
	m.done = done
	m.end = func() error {
		cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-done:
			return ended
		case <-time.After(time.Minute):
			cmd.Process.Kill()
			return errors.New("it does not end")
		}
	}
	end := m.end
	m.t.Cleanup(func() {
		if err := end(); err != nil && err.Error() != "signal: killed" {
			m.t.Errorf("manisd ended: %v", err)
		}
		if m.t.Failed() {
			m.t.Logf("manisd said: %s\nand told %q", m.said.String(), m.told)
		}
	})
}

// hears waits until a notification has begun with words so many times.
func (m *testManager) hears(words string, times int) {
	m.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		n := 0
		m.mu.Lock()
		for _, line := range m.told {
			if strings.HasPrefix(line, words) {
				n++
			}
		}
		m.mu.Unlock()
		if n >= times {
			return
		}
	}
	m.t.Fatalf("waited in vain for %s", words)
}

func (m *testManager) socket() string { return filepath.Join(m.dir, "run", "manisd.sock") }

func (m *testManager) ask() pool.State {
	m.t.Helper()
	s, err := pool.Ask(context.Background(), m.socket())
	check(m.t, err)
	return s
}

// The sockets of who started it are used, also by requests made before; it says that it is ready,
// that it lives and how it is, and that it stops; the sockets stay.
func TestSocketActivation(t *testing.T) {
	m := newManager(t)
	check(t, os.Mkdir(filepath.Dir(m.socket()), 0o700))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.socket(), Net: "unix"})
	check(t, err)
	defer l.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer tcp.Close()
	early := make(chan error, 1)
	go func() {
		_, err := pool.Ask(context.Background(), m.socket())
		early <- err
	}()
	local, err := l.File()
	check(t, err)
	remote, err := tcp.(*net.TCPListener).File()
	check(t, err)
	m.start([]*os.File{local, remote}, "-n", "3", "--max", "5")
	check(t, <-early)
	m.hears("READY=1", 1)
	m.hears("STATUS=0 of 0 machines wait", 1)
	m.hears("WATCHDOG=1", 3)
	if s := m.ask(); len(s.Sizes) != 1 || s.Sizes[0].Min != 3 || s.Sizes[0].Max != 5 {
		t.Errorf("%+v", s.Sizes)
	}
	conn, err := net.Dial("tcp", tcp.Addr().String())
	check(t, err)
	defer conn.Close()
	fmt.Fprint(conn, "GET /metrics HTTP/1.0\r\n\r\n")
	answer := new(bytes.Buffer)
	_, err = answer.ReadFrom(conn)
	check(t, err)
	if !strings.Contains(answer.String(), "manis_pool_memory_budget_bytes") {
		t.Errorf("metrics: %s", answer)
	}
	check(t, m.end())
	m.hears("STOPPING=1", 1)
	if _, err := os.Stat(m.socket()); err != nil {
		t.Errorf("the manager's socket: %v", err)
	}
}

// Without a manager it makes its socket itself, and removes it.
func TestWithoutManager(t *testing.T) {
	m := newManager(t)
	m.start(nil, "--metrics", "127.0.0.1:0")
	m.hears("READY=1", 1)
	m.ask()
	second := exec.Command(m.cmd.Path, m.cmd.Args[1:]...)
	second.Env = m.cmd.Env
	if said, err := second.CombinedOutput(); err == nil || !strings.Contains(string(said), "another manisd") {
		t.Errorf("a second one: %v, %s", err, said)
	}
	m.ask() // the first has not been disturbed
	check(t, m.end())
	if _, err := os.Stat(m.socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}

// What was killed is in nobody's way.
func TestKilledDaemonIsReplaced(t *testing.T) {
	m := newManager(t)
	m.start(nil)
	m.hears("READY=1", 1)
	check(t, m.cmd.Process.Kill())
	<-m.done
	if _, err := os.Stat(m.socket()); err != nil {
		t.Fatalf("its socket: %v", err)
	}
	m.start(nil)
	m.hears("READY=1", 2)
	m.ask()
}

// SIGHUP reads the settings again; wrong ones change nothing.
func TestReload(t *testing.T) {
	m := newManager(t)
	m.start(nil)
	m.hears("READY=1", 1)
	file := filepath.Join(m.dir, "config", "manisd.json")
	for i, tt := range []struct {
		content   string
		least, of int
	}{
		{`{"sizes": [{"waiting": 3}, {"memory": "1g"}], "memoryBudget": "123m"}`, 3, 2},
		{`{"sizes": [{"waiting": -3}]}`, 3, 2},
		{`{"sizes": [{"waiting": 4}]}`, 4, 1},
	} {
		check(t, os.WriteFile(file, []byte(tt.content), 0o600))
		check(t, m.cmd.Process.Signal(unix.SIGHUP))
		m.hears("RELOADING=1", i+1)
		m.hears("READY=1", i+2)
		if s := m.ask(); len(s.Sizes) != tt.of || s.Sizes[0].Min != tt.least {
			t.Errorf("%s: %+v", tt.content, s.Sizes)
		}
	}
	check(t, m.end())
	if !strings.Contains(m.said.String(), "the settings stay as they are") {
		t.Errorf("said %q", m.said.String())
	}
}

func TestMetricsStayOnThisHost(t *testing.T) {
	for _, address := range []string{"0.0.0.0:9750", ":9750", "192.0.2.1:9750", "nonsense"} {
		if l, err := complete(nil, filepath.Join(t.TempDir(), "s"), address); err == nil {
			t.Errorf("%s: %v", address, l)
		}
	}
}

// Machines inherit nothing of the conversation with the manager.
func TestEnvironOfMachines(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("LISTEN_FDS", "0")
	t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "1000000")
	m := takeManager()
	if m.watchdog != time.Second {
		t.Errorf("watchdog %v", m.watchdog)
	}
	for _, e := range environ() {
		for _, name := range []string{"NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_"} {
			if strings.HasPrefix(e, name) {
				t.Errorf("machines get %s", e)
			}
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The units are such that systemd takes them without complaint.
func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	for _, kind := range []string{"system", "user"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			check(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
			check(t, os.WriteFile(filepath.Join(dir, "bin", "manisd"), []byte("#!/bin/sh\n"), 0o755))
			args := []string{"verify", "--" + kind, "--man=no"}
			for _, unit := range []string{"manisd.service", "manisd.socket"} {
				b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", kind, unit))
				check(t, err)
				path := filepath.Join(dir, unit)
				check(t, os.WriteFile(path, bytes.ReplaceAll(b, []byte("@PREFIX@"), []byte(dir)), 0o644))
				args = append(args, path)
			}
			cmd := exec.Command("systemd-analyze", args...)
			cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
			said, err := cmd.CombinedOutput()
			if err != nil || bytes.Contains(said, []byte("manisd")) {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
}
