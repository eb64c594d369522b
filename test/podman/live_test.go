package podman

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"manis/test/stage"
)

func TestExec(t *testing.T) {
	p := podman(t)
	t.Parallel()
	c := up(t, p, append([]string{"--network", "none"}, idle...)...)
	p.Fails(t, 9, "", "exec", c, "sh", "-c", "exit 9")
	p.Fails(t, 127, "not found", "exec", c, "pangolin")
	p.Fails(t, 126, "permission denied", "exec", c, "/etc/passwd")
	p.Prints(t, "65534 /etc there", "exec", "-u", "nobody", "-w", "/etc", "-e", "HERE=there", c, "sh", "-c", "echo $(id -u) $PWD $HERE")
	if r := p.Feed(t, "input", "exec", "-i", c, "cat"); r.Code != 0 || r.Out != "input" {
		t.Errorf("what went in came out as %s", r)
	}
	p.OK(t, "exec", "-d", c, "sh", "-c", "echo done >/detached")
	stage.Eventually(t, "the detached process", func() bool { return p.Run(t, "exec", c, "cat", "/detached").Out == "done\n" })

	term := p.Terminal(t, "exec", "-it", c, "sh")
	term.Await("#")
	term.Type("stty size; tty\n")
	term.Await("40 120")
	term.Await("/dev/pts/")
	term.Type("exit 6\n")
	if code := term.End(); code != 6 {
		t.Errorf("the terminal's process ended with %d: %q", code, term.Shown())
	}
}

// A hundred processes at the same time, each with its own output and exit code.
func TestManyExecs(t *testing.T) {
	p := podman(t)
	c := up(t, p, append([]string{"--network", "none"}, idle...)...)
	const many, callers = 100, 10
	numbers := make(chan int)
	var wg sync.WaitGroup
	var met sync.Map
	for range callers {
		wg.Go(func() {
			for n := range numbers {
				r := p.Feed(t, strconv.Itoa(n), "exec", "-i", c, "sh", "-c", fmt.Sprintf("cat; exit %d", n))
				if r.Code != n || r.Out != strconv.Itoa(n) {
					t.Errorf("exec %d: %s", n, r)
				}
				met.Store(n, true)
			}
		})
	}
	for n := range many {
		numbers <- n + 1
	}
	close(numbers)
	wg.Wait()
	p.Prints(t, "1", "exec", c, "sh", "-c", "ps | grep -c '[s]h -c trap'")
}

// A hundred processes that all run at once.
func TestExecsAtOnce(t *testing.T) {
	p := podman(t)
	c := up(t, p, append([]string{"--network", "none"}, idle...)...)
	for range 10 {
		// Podman's own work per call is most of the time: ten of them, ten processes each.
		p.OK(t, "exec", "-d", c, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1001 & done; exec sleep 1001")
	}
	stage.Eventually(t, "a hundred processes", func() bool {
		return p.Run(t, "exec", c, "sh", "-c", "ps | grep -c '[s]leep 1001'").Out == "100\n"
	})
	p.OK(t, "exec", c, "killall", "sleep")
}

func TestLogs(t *testing.T) {
	p := podman(t)
	t.Parallel()
	c := up(t, p, "--network", "none", "box", "sh", "-c", "echo out; echo err >&2; i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done; exit 4")
	p.Prints(t, "4", "wait", c)
	r := p.Run(t, "logs", c)
	if r.Code != 0 || !strings.HasPrefix(r.Out, "out\nline 0\n") || !strings.HasSuffix(r.Out, "line 999\n") || r.Err != "err\n" {
		t.Errorf("logs: %d bytes, %q", len(r.Out), r.Err)
	}
	p.Prints(t, "line 999", "logs", "--tail", "1", c)
}

func TestStop(t *testing.T) {
	p := podman(t)
	t.Parallel()
	t.Run("the signal is handled", func(t *testing.T) {
		c := up(t, p, "--network", "none", "box", "sh", "-c", "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
		stage.Eventually(t, "the container", func() bool { return p.Run(t, "logs", c).Out == "ready\n" })
		p.OK(t, "stop", "-t", "60", c)
		if got := field(t, p, c, "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 3" {
			t.Errorf("it is %s", got)
		}
		p.Prints(t, "ready\nasked", "logs", c)
		p.Fails(t, 255, "running containers", "exec", c, "true")
		p.OK(t, "start", c)
		if got := field(t, p, c, "{{.State.Status}}"); got != "running" {
			t.Errorf("after start it is %s", got)
		}
		p.Fails(t, 2, "cannot remove", "rm", c)
	})
	t.Run("the signal is ignored", func(t *testing.T) {
		c := up(t, p, "--network", "none", "box", "sleep", "1000")
		p.OK(t, "stop", "-t", "1", c)
		if got := field(t, p, c, "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
			t.Errorf("it is %s", got)
		}
	})
}

func TestKillAndPause(t *testing.T) {
	p := podman(t)
	t.Parallel()
	c := up(t, p, "--network", "none", "box", "sh", "-c", "trap 'echo usr1' USR1; echo ready; while :; do date +%s >/beat; sleep 0.1; done")
	stage.Eventually(t, "the container", func() bool { return p.Run(t, "logs", c).Out == "ready\n" })
	p.OK(t, "kill", "-s", "USR1", c)
	stage.Eventually(t, "the signal", func() bool { return strings.Contains(p.Run(t, "logs", c).Out, "usr1") })
	p.OK(t, "pause", c)
	if got := field(t, p, c, "{{.State.Status}}"); got != "paused" {
		t.Errorf("it is %s", got)
	}
	p.Fails(t, 255, "running containers", "exec", c, "true")
	p.Fails(t, 2, "cannot remove", "rm", c)
	p.OK(t, "unpause", c)
	p.OK(t, "exec", c, "sh", "-c", "rm /beat; until [ -s /beat ]; do sleep 0.1; done")
	p.OK(t, "kill", c)
	p.Prints(t, "137", "wait", c)
	p.Fails(t, 125, "can only kill running containers", "kill", c)
}

func TestTopAndStats(t *testing.T) {
	p := podman(t)
	t.Parallel()
	c := up(t, p, append([]string{"-m", "300m"}, idle...)...)
	if r := p.Run(t, "top", c); r.Code != 0 || !strings.Contains(r.Out, "sh -c trap") {
		t.Errorf("top: %s", r)
	}
	// ps of the container's own, as Podman does it where it gets options of ps.
	if r := p.Run(t, "top", c, "-o", "pid,comm"); r.Code != 0 || !strings.Contains(r.Out, "PID") {
		t.Errorf("top with options of ps: %s", r)
	}
	var cpu, memory, share string
	r := p.OK(t, "stats", "--no-stream", "--format", "{{.CPUPerc}} {{.MemUsage}} {{.MemPerc}}", c)
	if n, _ := fmt.Sscanf(r, "%s %s / 314.6MB %s", &cpu, &memory, &share); n != 3 || strings.HasPrefix(memory, "0B") {
		t.Errorf("stats: %q", r)
	}
}

// Files go in and out while the container runs and after, through volumes, too.
func TestCopyDiffCommit(t *testing.T) {
	p := podman(t)
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "in")
	if err := os.WriteFile(file, []byte("from the host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	p.OK(t, "volume", "create", "copied")
	t.Cleanup(func() { p.OK(t, "volume", "rm", "-f", "copied") })
	c := up(t, p, append([]string{"--network", "none", "-v", "copied:/volume"}, idle...)...)
	for _, state := range []string{"running", "stopped"} {
		name := "/dir-" + state
		if state == "running" {
			p.OK(t, "exec", c, "sh", "-c", "mkdir -p /dir-running /dir-stopped; echo one >/dir-running/a; echo two >/dir-stopped/a; ln -s a /dir-running/link; chown 5:6 /dir-stopped/a; rm /etc/group")
		} else {
			p.OK(t, "stop", "-t", "0", c)
		}
		p.OK(t, "cp", file, c+":"+name+"/in")
		p.OK(t, "cp", file, c+":/volume/"+state)
		p.OK(t, "cp", c+":"+name, filepath.Join(dir, state))
		p.OK(t, "cp", c+":/volume/"+state, filepath.Join(dir, "back-"+state))
		for path, want := range map[string]string{state + "/a": map[string]string{"running": "one\n", "stopped": "two\n"}[state], state + "/in": "from the host\n", "back-" + state: "from the host\n"} {
			if b, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(b) != want {
				t.Errorf("%s: %q, %v", path, b, err)
			}
		}
		if state == "running" {
			p.Prints(t, "from the host\nfrom the host", "exec", c, "cat", name+"/in", "/volume/running")
		}
	}
	diff := strings.Split(p.OK(t, "diff", c), "\n")
	for _, want := range []string{"A /dir-running", "A /dir-running/in", "A /dir-stopped/in", "D /etc/group", "C /etc"} {
		if !contains(diff, want) {
			t.Errorf("diff lacks %q: %q", want, diff)
		}
	}
	p.OK(t, "commit", "-q", c, "committed")
	t.Cleanup(func() { p.OK(t, "rmi", "-f", "committed") })
	p.Prints(t, "two 5:6 a gone", "run", "--rm", "--network", "none", "committed", "sh", "-c", "echo $(cat /dir-stopped/a) $(stat -c %u:%g /dir-stopped/a) $(readlink /dir-running/link) $(test -e /etc/group || echo gone)")
	// The container goes on with its files.
	p.OK(t, "start", c)
	p.Prints(t, "from the host", "exec", c, "cat", "/dir-stopped/in")
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func TestHealthcheck(t *testing.T) {
	p := podman(t)
	t.Parallel()
	c := up(t, p, append([]string{"--network", "none", "--health-cmd", "test -e /tmp/well || { echo not yet; exit 1; }", "--health-interval", "disable", "--health-retries", "1"}, idle...)...)
	p.Fails(t, 1, "unhealthy", "healthcheck", "run", c)
	p.OK(t, "exec", c, "touch", "/tmp/well")
	p.OK(t, "healthcheck", "run", c)
	if got := field(t, p, c, "{{.State.Health.Status}}"); got != "healthy" {
		t.Errorf("it is %s", got)
	}
}

func TestRestartPolicy(t *testing.T) {
	p := podman(t)
	t.Parallel()
	c := up(t, p, "--network", "none", "--restart", "on-failure:2", "box", "sh", "-c", "echo run; exit 3")
	stage.Eventually(t, "the last attempt", func() bool {
		return field(t, p, c, "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}") == "2 exited 3"
	})
	p.Prints(t, "run\nrun\nrun", "logs", c)

	// Always means: until somebody stops it.
	c = up(t, p, "--network", "none", "--restart", "always", "box", "sh", "-c", "sleep 0.2")
	stage.Eventually(t, "several attempts", func() bool {
		n, err := strconv.Atoi(field(t, p, c, "{{.RestartCount}}"))
		return err == nil && n >= 2
	})
	p.OK(t, "stop", "-t", "0", c)
	if got := field(t, p, c, "{{.State.Status}}"); got != "exited" {
		t.Errorf("stopped, it is %s", got)
	}
}

// Dockerfiles are built with their steps in machines.
func TestBuild(t *testing.T) {
	p := podman(t)
	t.Parallel()
	dir := t.TempDir()
	text := "FROM localhost/box:latest\nCOPY in /in\nRUN cat /in >/out && uname -r >/kernel && echo someone:x:77:77::/:/bin/sh >>/etc/passwd\nUSER someone\nRUN id -u >/tmp/id\nCMD [\"cat\", \"/out\", \"/kernel\", \"/tmp/id\"]\n"
	for name, content := range map[string]string{"Containerfile": text, "in": "built\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := p.Run(t, "build", "--runtime", stage.Manis(t), "--network", "none", "-q", "-t", "built", dir)
	if r.Code != 0 {
		t.Fatalf("build: %s", r)
	}
	t.Cleanup(func() { p.OK(t, "rmi", "-f", "built") })
	lines := strings.Fields(p.OK(t, "run", "--rm", "--network", "none", "built"))
	if len(lines) != 3 || lines[0] != "built" || !strings.HasSuffix(lines[1], "-manis") || lines[2] != "77" {
		t.Errorf("the image's command prints %q", lines)
	}
}
