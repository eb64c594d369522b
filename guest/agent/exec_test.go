package agent_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
)

// sleeper starts a container that does nothing until it is killed.
func sleeper(t testing.TB, m *machine, change func(r *api.CreateContainerRequest)) (*container, *process) {
	t.Helper()
	c, p := m.start(t, sh("trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait; done"), change)
	p.stdin.Close()
	p.stdout.await(t, "up")
	return c, p
}

func TestExec(t *testing.T) {
	m := theMachine(t)
	c, _ := sleeper(t, m, func(r *api.CreateContainerRequest) {
		r.Resources = &api.Resources{Pids: 200}
	})
	t.Run("joins everything", func(t *testing.T) {
		links := "for n in pid mnt uts ipc cgroup; do readlink /proc/%s/ns/$n; done;"
		r := c.exec(sh("hostname;" + fmt.Sprintf(links, "self") + "cat /proc/self/cgroup /sys/fs/cgroup/pids.max;" + fmt.Sprintf(links, "1")))
		l := strings.Fields(r.stdout)
		if len(l) != 13 || l[0] != "box" || strings.Join(l[1:6], " ") != strings.Join(l[8:], " ") || l[6] != "0::/" || l[7] != "200" {
			t.Errorf("got %q %s", r.stdout, r.stderr)
		}
	})
	t.Run("exit codes", func(t *testing.T) {
		if r := c.exec(sh("exit 42")); r.ExitCode != 42 {
			t.Errorf("exit code %d", r.ExitCode)
		}
		if r := c.exec(sh("kill -KILL $$")); r.ExitCode != 137 || r.Signal != 9 {
			t.Errorf("exit code %d, signal %d", r.ExitCode, r.Signal)
		}
	})
	t.Run("fresh identity", func(t *testing.T) {
		p := sh("id -u; pwd; grep CapEff /proc/self/status | cut -f2; echo $FOO")
		p.User, p.Cwd, p.Env = "user", "/tmp", append(p.Env, "FOO=bar")
		if r := c.exec(p); r.stdout != "1000\n/tmp\n0000000000000000\nbar\n" {
			t.Errorf("got %q", r.stdout)
		}
	})
	t.Run("stdin", func(t *testing.T) {
		p, err := c.startExec(command("tr", "a-z", "A-Z"))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(p.stdin, "hello")
		p.stdin.Close()
		if r := p.wait(); r.stdout != "HELLO" {
			t.Errorf("got %q", r.stdout)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		p := sh("tty; stty size")
		p.Terminal, p.Rows, p.Columns = true, 10, 20
		proc, err := c.startExec(p)
		if err != nil {
			t.Fatal(err)
		}
		if r := proc.wait(); !strings.Contains(r.stdout, "/dev/pts/") || !strings.Contains(r.stdout, "10 20") {
			t.Errorf("got %q", r.stdout)
		}
	})
	t.Run("not found", func(t *testing.T) {
		if _, err := c.startExec(command("nonesuch")); status.Code(err) != codes.NotFound {
			t.Errorf("error %v", err)
		}
		if _, err := c.startExec(command("/etc/passwd")); status.Code(err) != codes.PermissionDenied {
			t.Errorf("error %v", err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		p, err := c.startExec(sh("trap 'echo usr1; exit 4' USR1; echo ready; while :; do sleep 0.05; done"))
		if err != nil {
			t.Fatal(err)
		}
		p.stdout.await(t, "ready")
		if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, ExecId: p.exec, Signal: 10}); err != nil {
			t.Fatal(err)
		}
		if r := p.wait(); r.ExitCode != 4 || !strings.Contains(r.stdout, "usr1") {
			t.Errorf("got %+v", r)
		}
		if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, ExecId: p.exec, Signal: 10}); status.Code(err) != codes.NotFound {
			t.Errorf("signal after the end: %v", err)
		}
	})
	t.Run("several at once", func(t *testing.T) {
		var all sync.WaitGroup
		var procs []*process
		for i := range 8 {
			p, err := c.startExec(sh(fmt.Sprintf("echo %d; cat >/dev/null; exit %d", i, i)))
			if err != nil {
				t.Fatal(err)
			}
			procs = append(procs, p)
		}
		for i, p := range procs {
			p.stdin.Close()
			all.Go(func() {
				if r := p.wait(); r.stdout != fmt.Sprintf("%d\n", i) || r.ExitCode != uint32(i) {
					t.Errorf("exec %d: %q, %d", i, r.stdout, r.ExitCode)
				}
			})
		}
		all.Wait()
	})
	t.Run("hostile working directory", func(t *testing.T) {
		// The agent's descriptors are not to be had by a path of the container.
		for fd := range 20 {
			p := sh("pwd; ls")
			p.Cwd = fmt.Sprintf("/proc/self/fd/%d", fd)
			proc, err := c.startExec(p)
			if err == nil {
				t.Errorf("%s: %q", p.Cwd, proc.wait().stdout)
			}
		}
		for fd := 3; fd < 20; fd++ {
			if proc, err := c.startExec(command(fmt.Sprintf("/proc/self/fd/%d/init", fd))); err == nil {
				t.Errorf("descriptor %d: %q", fd, proc.wait().stdout)
			}
		}
	})
}

func TestExecAfterTheEnd(t *testing.T) {
	m := theMachine(t)
	c, p := m.start(t, sh("exit 0"), nil)
	p.stdin.Close()
	p.wait()
	if _, err := c.startExec(sh("true")); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("error %v", err)
	}
}

func TestSignalAndKill(t *testing.T) {
	m := theMachine(t)
	c, p := sleeper(t, m, nil)
	if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, Signal: 15}); err != nil {
		t.Fatal(err)
	}
	if r := p.wait(); r.ExitCode != 0 {
		t.Errorf("TERM: exit code %d", r.ExitCode)
	}
	c, p = sleeper(t, m, nil)
	if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	if r := p.wait(); r.ExitCode != 137 || r.Signal != 9 {
		t.Errorf("KILL: exit code %d, signal %d", r.ExitCode, r.Signal)
	}
	c, p = sleeper(t, m, nil)
	e, err := c.startExec(sh("trap 'exit 11' HUP; echo ready; while :; do sleep 0.05; done"))
	if err != nil {
		t.Fatal(err)
	}
	e.stdout.await(t, "ready")
	if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, Signal: 1, All: true}); err != nil {
		t.Fatal(err)
	}
	if r := e.wait(); r.ExitCode != 11 {
		t.Errorf("HUP to all: exit code %d", r.ExitCode)
	}
	if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, Signal: 99}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("signal 99: %v", err)
	}
	_ = p
}

func TestRemoveWhileRunning(t *testing.T) {
	m := theMachine(t)
	c, p := sleeper(t, m, nil)
	e, err := c.startExec(sh("echo ready; sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	e.stdout.await(t, "ready")
	if _, err := m.agent.RemoveContainer(deadline(t), &api.ContainerRef{Id: c.id}); err != nil {
		t.Fatal(err)
	}
	// Streams end, and the name is free.
	_ = p.stdout.String()
	_ = e.stdout.String()
	if _, err := m.agent.RemoveContainer(deadline(t), &api.ContainerRef{Id: c.id}); status.Code(err) != codes.NotFound {
		t.Errorf("second removal: %v", err)
	}
}

func TestPause(t *testing.T) {
	m := theMachine(t)
	c, p := m.start(t, sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"), nil)
	p.stdout.await(t, "3\n")
	ref := &api.ContainerRef{Id: c.id}
	if _, err := m.agent.Pause(deadline(t), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := m.agent.Pause(deadline(t), ref); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("second pause: %v", err)
	}
	if _, err := c.startExec(sh("true")); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("exec while paused: %v", err)
	}
	if _, err := m.agent.Resume(deadline(t), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := m.agent.Resume(deadline(t), ref); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("second resume: %v", err)
	}
	if r := c.exec(sh("echo works")); r.stdout != "works\n" {
		t.Errorf("exec after resume: %q", r.stdout)
	}
	// A paused container can be removed.
	if _, err := m.agent.Pause(deadline(t), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := m.agent.RemoveContainer(deadline(t), ref); err != nil {
		t.Error(err)
	}
	p.stdin.Close()
}

func TestProcesses(t *testing.T) {
	m := theMachine(t)
	c, _ := sleeper(t, m, nil)
	p := sh("echo ready; exec sleep 999")
	p.User, p.Terminal = "user", true
	e, err := c.startExec(p)
	if err != nil {
		t.Fatal(err)
	}
	e.stdout.await(t, "ready")
	// "ready" comes from the shell: that it becomes a sleep may take a moment more.
	var list *api.ProcessesResponse
	var first, exec *api.ProcessInfo
	for end := time.Now().Add(30 * time.Second); exec == nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if list, err = m.agent.Processes(deadline(t), &api.ContainerRef{Id: c.id}); err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Processes {
			switch {
			case p.Pid == 1:
				first = p
			case p.Command == "sleep 999":
				exec = p
			}
		}
	}
	if first == nil || first.Ppid != 0 || first.User != "root" || !strings.HasPrefix(first.Command, "sh -c") || first.StartedUnixNs == 0 {
		t.Errorf("first process: %v", first)
	}
	if exec == nil || exec.User != "user" || exec.Uid != 1000 || !strings.HasPrefix(exec.Tty, "pts/") {
		t.Errorf("exec: %v of %v", exec, list)
	}
}
