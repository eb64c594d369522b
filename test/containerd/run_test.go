package containerd

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/test/stage"
)

// detached starts a container that is removed after the test.
func detached(t *testing.T, c *stage.Engine, id string, command ...string) {
	t.Helper()
	c.OK(t, append([]string{"run", "-d", "--runtime", runtime, image, id}, command...)...)
	t.Cleanup(func() {
		c.Run(t, "task", "rm", "-f", id)
		c.OK(t, "container", "rm", id)
	})
}

// task is what ctr says of one: its process and its state.
func task(t *testing.T, c *stage.Engine, id string) (pid int, status string) {
	t.Helper()
	for line := range strings.Lines(c.OK(t, "task", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			pid, _ = strconv.Atoi(f[1])
			return pid, f[2]
		}
	}
	return 0, ""
}

func await(t *testing.T, c *stage.Engine, id, status string) {
	t.Helper()
	stage.Eventually(t, id+" "+status, func() bool {
		_, now := task(t, c, id)
		return now == status
	})
}

func TestRun(t *testing.T) {
	c := ctr(t)
	r := c.Run(t, "run", "--rm", "--runtime", runtime, "--env", "A=b", image, "run", "sh", "-c", "echo $A; uname -r; echo words >&2; exit 3")
	if lines := strings.Split(r.Out, "\n"); r.Code != 3 || lines[0] != "b" || !strings.HasSuffix(lines[1], "-manis") || !strings.Contains(r.Err, "words") {
		t.Error(r)
	}
	log := dir("words.log")
	c.OK(t, "run", "-d", "--runtime", runtime, "--log-uri", "file://"+log, image, "logs", "sh", "-c", "echo words; echo more >&2")
	stage.Eventually(t, "the log", func() bool {
		b, _ := os.ReadFile(log)
		return strings.Contains(string(b), "words\n") && strings.Contains(string(b), "more\n")
	})
	await(t, c, "logs", "STOPPED")
	c.OK(t, "task", "rm", "logs")
	c.OK(t, "container", "rm", "logs")
	for name, args := range map[string][]string{
		"no such file or directory":    {image, "absent", "/nonesuch"},
		"the host's network was asked": {"--net-host", image, "hosts", "true"},
	} {
		if r := c.Run(t, append([]string{"run", "--rm", "--runtime", runtime}, args...)...); r.Code == 0 || !strings.Contains(r.Err, name) {
			t.Errorf("%s: %s", name, r)
		}
	}
}

func TestProcesses(t *testing.T) {
	c := ctr(t)
	detached(t, c, "life", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
	pid, status := task(t, c, "life")
	if comm, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); status != "RUNNING" || !strings.HasPrefix(string(comm), "qemu") {
		t.Errorf("the task is %s and stands for %q", status, comm)
	}
	c.Fails(t, 5, "", "task", "exec", "--exec-id", "fails", "life", "sh", "-c", "exit 5")
	if r := c.Feed(t, "through\n", "task", "exec", "--exec-id", "copies", "life", "cat"); r.Out != "through\n" || r.Code != 0 {
		t.Error(r)
	}
	c.OK(t, "task", "pause", "life")
	await(t, c, "life", "PAUSED")
	c.OK(t, "task", "resume", "life")
	await(t, c, "life", "RUNNING")
	for _, counter := range []string{"memory", "cpu", "pids"} {
		if r := c.OK(t, "task", "metrics", "life"); !strings.Contains(r, counter) {
			t.Errorf("no %s in the metrics: %s", counter, r)
		}
	}
	c.OK(t, "task", "kill", "--signal", "SIGTERM", "life")
	await(t, c, "life", "STOPPED")
	c.Fails(t, 0, "exit code 7", "task", "rm", "life")
}

func TestTerminal(t *testing.T) {
	c := ctr(t)
	p := c.Terminal(t, "run", "--rm", "-t", "--runtime", runtime, image, "screen", "sh")
	p.Await("# ")
	p.Type("stty size; tty\n")
	p.Await("40 120")
	p.Await("/dev/pts/0")
	p.Resize(33, 99)
	stage.Eventually(t, "the new size", func() bool {
		p.Type("stty size\n")
		time.Sleep(100 * time.Millisecond)
		return strings.Contains(p.Shown(), "33 99")
	})
	p.Type("exit 4\n")
	if code := p.End(); code != 4 {
		t.Errorf("exit %d: %s", code, p.Shown())
	}
}

// TestRestart kills containerd while a container runs and writes.
func TestRestart(t *testing.T) {
	c := ctr(t)
	detached(t, c, "stays", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
	before, _ := task(t, c, "stays")
	restart(t)
	if pid, status := task(t, c, "stays"); pid != before || status != "RUNNING" {
		t.Errorf("the task is %s, process %d and not %d", status, pid, before)
	}
	c.Prints(t, "again", "task", "exec", "--exec-id", "later", "stays", "echo", "again")
	c.OK(t, "task", "kill", "--signal", "SIGTERM", "stays")
	await(t, c, "stays", "STOPPED")
}

// TestKilled kills what a container consists of on the host.
func TestKilled(t *testing.T) {
	c := ctr(t)
	t.Run("machine", func(t *testing.T) {
		detached(t, c, "nomachine", "sleep", "1000")
		pid, _ := task(t, c, "nomachine")
		unix.Kill(pid, unix.SIGKILL)
		await(t, c, "nomachine", "STOPPED")
		c.Fails(t, 0, "exit code 137", "task", "rm", "nomachine")
		if !strings.Contains(said(), "container nomachine: the virtual machine ended") {
			t.Errorf("containerd's log does not give the reason: %s", said())
		}
	})
	t.Run("shim", func(t *testing.T) {
		detached(t, c, "noshim", "sleep", "1000")
		for _, p := range stage.Processes() {
			if strings.Contains(p.Command, "containerd-shim-manis-v2") && strings.Contains(p.Command, "-id noshim ") {
				unix.Kill(p.PID, unix.SIGKILL)
			}
		}
		await(t, c, "noshim", "")
	})
	nothingLeft(t)
}

// TestVersion2 has the machine's own containerd, which is an older one, run a container.
func TestVersion2(t *testing.T) {
	ctr(t)
	out, err := exec.Command("/usr/bin/containerd", "--version").Output()
	if err != nil || !strings.Contains(string(out), " 1.") {
		t.Skipf("the machine has no containerd 1.x: %s", out)
	}
	config := dir("old.toml")
	text := "version = 2\nroot = \"" + dir("old") + "\"\nstate = \"" + dir("oldstate") + "\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"" + dir("old.sock") + "\"\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("/usr/bin/containerd", "-c", config)
	daemon.Env = suite.env
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Signal(os.Interrupt)
		daemon.Wait()
	})
	old := &stage.Engine{Args: []string{"/usr/bin/ctr", "-a", dir("old.sock")}, Env: suite.env, Dir: stage.Dir()}
	stage.Eventually(t, "containerd", func() bool { return old.Run(t, "version").Code == 0 })
	old.OK(t, "image", "import", dir("layout.tar"))
	if r := old.Run(t, "run", "--rm", "--runtime", runtime, image, "old", "sh", "-c", "echo here; exit 3"); r.Code != 3 || r.Out != "here\n" {
		t.Error(r)
	}
}
