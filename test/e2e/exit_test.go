package e2e

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// The exit code of run is the container's own, or says who failed: 125 Manis, 126 not
// executable, 127 not found, 128+n a signal.
func TestRunExitCodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	for _, c := range []struct {
		name  string
		args  []string // after "run --rm"
		code  int
		words string
	}{
		{"success", []string{"true"}, 0, ""},
		{"the container's own", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"the highest", []string{"sh", "-c", "exit 255"}, 255, ""},
		{"not found", []string{"no-such-command"}, 127, `"no-such-command": executable file not found in $PATH`},
		{"not found by path", []string{"/no/such"}, 127, "/no/such"},
		{"not executable", []string{"/etc/passwd"}, 126, "permission denied"},
		{"a directory", []string{"/etc"}, 126, "/etc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w.in(t).fails(c.code, c.words, append([]string{"run", "--rm", "box"}, c.args...)...)
		})
	}
	// A first process is deaf to its own signals, so an init is first here.
	t.Run("by signal", func(t *testing.T) {
		t.Parallel()
		w.in(t).fails(143, "", "run", "--rm", "--init", "box", "sh", "-c", "kill -TERM $$")
	})
	t.Run("killed from outside", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		p := w.begin("", "run", "--rm", "--name", "victim", "box", "sh", "-c", "echo up; sleep 1000")
		p.expect("up")
		w.ok("kill", "victim")
		if r := p.wait(); r.code != 137 {
			t.Error(r)
		}
	})
}

// The exit codes of exec are those of run, but an error of Manis itself is 1, as docker's.
func TestExecExitCodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sleep", "1000")
	for _, c := range []struct {
		name  string
		args  string
		code  int
		words string
	}{
		{"success", "c true", 0, ""},
		{"the process's own", "c sh -c exit\t9", 9, ""},
		{"by signal", "c sh -c kill\t-9\t$$", 137, ""},
		{"not found", "c no-such-command", 127, "no-such-command"},
		{"not executable", "c /etc/passwd", 126, "permission denied"},
		{"unknown user", "-u nobody-here c id", 1, "nobody-here"},
		{"no directory", "-w relative c pwd", 1, "absolute"},
		{"no such container", "other true", 1, "no such container"},
		{"no command", "c", 1, "requires at least 2 arguments"},
	} {
		args := []string{"exec"}
		for _, a := range strings.Fields(strings.ReplaceAll(c.args, "\t", "_")) {
			args = append(args, strings.ReplaceAll(a, "_", " "))
		}
		t.Run(c.name, func(t *testing.T) { w.in(t).fails(c.code, c.words, args...) })
	}
	w.ok("stop", "-t", "0", "c")
	w.fails(1, "not running", "exec", "c", "true")
}

func TestBadFlags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	missing := filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct{ args, words string }{
		{"--no-such-flag box", "unknown flag: --no-such-flag"},
		{"-m 1m box", "minimum memory limit"},
		{"-m lots box", "lots"},
		{"-m -5m box", "-5m"},
		{"--cpus 0.001 box", "0.01"},
		{"--cpus 4000 box", "CPUs"},
		{"--cpus " + strconv.Itoa(runtime.NumCPU()+1) + " box", "CPUs"},
		{"--cpus many box", "many"},
		{"--cpuset-cpus 900 box", "900"},
		{"-p 70000:80 box", "70000"},
		{"-p 80:80/sctp box", "sctp"},
		{"-p 80:80 -p 80:81 box", "80"},
		{"-p 1-3:1-2 box", "ranges"},
		{"-v relative:: box", "relative"},
		{"-v /x:relative box", "relative"},
		{"-v /tmp:/a -v /var:/a box", "/a"},
		{"-v /tmp:/ box", "/"},
		{"--mount type=bind,source=" + missing + ",target=/x box", missing},
		{"--mount type=floppy,target=/x box", "floppy"},
		{"--tmpfs /x:size=lots box", "lots"},
		{"--network nowhere box", "nowhere"},
		{"--network host box", "host"},
		{"--network none -p 80:80 box", "none"},
		{"--add-host name box", "name"},
		{"--dns example.org box", "example.org"},
		{"--hostname -bad- box", "-bad-"},
		{"--mac-address 01:00:00:00:00:01 box", "mac address"},
		{"--restart sometimes box", "sometimes"},
		{"--restart always:3 box", "always"},
		{"--rm --restart always box", "--rm"},
		{"--ulimit nofile=9:1 box", "nofile"},
		{"--ulimit weight=9 box", "weight"},
		{"--cap-add FLY box", "FLY"},
		{"--stop-signal SIGNOPE box", "SIGNOPE"},
		{"--accel warp box", "warp"},
		{"-e =x box", "=x"},
		{"--env-file " + missing + " box", missing},
		{"--label =x box", "label"},
		{"--name -bad- box", "-bad-"},
		{"--name a/b box", "a/b"},
		{"--sysctl kernel.panic box", "kernel.panic"},
		{"--security-opt seccomp=" + missing + " box", missing},
		{"--security-opt magic box", "magic"},
		{"--storage-opt size=1 box", "size"},
		{"--storage-opt colour=blue box", "colour"},
		{"--log-driver paper box", "paper"},
		{"--log-opt max-size=-1 box", "max-size"},
		{"--pids-limit -7 box", "-7"},
		{"--oom-score-adj 5000 box", "5000"},
		{"--device /etc/passwd box", "/etc/passwd"},
		{"--gpus all box", "GPU"},
		{"--pid host box", "pid"},
		{"--userns host box", "userns"},
		{"--health-interval -1s --health-cmd true box", "health-interval"},
		{"--platform toaster/x box", "toaster"},
		{"--pull sometimes box", "sometimes"},
		{"-d -a stdout box", "detach"},
		{"-u :staff box", ":staff"},
		{"-w relative box", "absolute"},
		{"--entrypoint= box", "no command"},
		{"--detach-keys ctrl-& box", "ctrl-&"},
		{"", "requires at least 1 argument"},
	} {
		t.Run(c.args, func(t *testing.T) {
			w.in(t).fails(125, c.words, append([]string{"run"}, strings.Fields(c.args)...)...)
		})
	}
	t.Run("create", func(t *testing.T) {
		w := w.in(t)
		w.fails(125, "sometimes", "create", "--restart", "sometimes", "box")
		w.fails(1, "no-such-image", "create", "--pull", "never", "no-such-image")
	})
	t.Run("platform", func(t *testing.T) {
		w := w.in(t)
		// Refused before the registry, of which nothing answers, is asked.
		for _, args := range [][]string{{"pull"}, {"run", "--pull", "always"}, {"create", "--pull", "always"}} {
			want := 1
			if args[0] == "run" {
				want = 125
			}
			w.fails(want, `unknown operating system "toaster"`, append(args, "--platform", "toaster/x", "127.0.0.1:1/x")...)
			w.fails(want, `unknown architecture "toaster"`, append(args, "--platform", "toaster", "127.0.0.1:1/x")...)
		}
	})
	if ids := w.ok("ps", "-aq"); ids != "" {
		t.Errorf("containers left by bad flags: %s", w.ok("ps", "-a", "--no-trunc"))
	}
}

// What only shows when the container starts leaves it created, as docker does, and with --rm
// nothing.
func TestStartFailures(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("unknown user", func(t *testing.T) {
		w := w.in(t)
		w.fails(125, "no-such-user", "run", "--rm", "--user", "no-such-user", "box", "id")
		if ids := w.ok("ps", "-aq"); ids != "" {
			t.Errorf("left: %s", ids)
		}
	})
	t.Run("a sysctl that is not the container's", func(t *testing.T) {
		w.in(t).fails(125, "kernel.panic", "run", "--rm", "--sysctl", "kernel.panic=1", "box", "true")
	})
	t.Run("not found keeps the container", func(t *testing.T) {
		w := w.in(t)
		w.fails(127, "nothing-like-it", "run", "--name", "kept", "box", "nothing-like-it")
		if got := w.field("kept", "{{.State.Status}} {{.State.ExitCode}}"); got != "created 127" {
			t.Errorf("state %q, want created 127", got)
		}
		if got := w.field("kept", "{{.State.Error}}"); !strings.Contains(got, "nothing-like-it") {
			t.Errorf("error %q does not name the command", got)
		}
		w.fails(1, "nothing-like-it", "start", "kept")
	})
	t.Run("host file gone before the start", func(t *testing.T) {
		w := w.in(t)
		file := filepath.Join(w.dir, "soon-gone")
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		w.ok("create", "--name", "late", "-v", file+":/file", "box", "true")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		w.fails(1, "soon-gone", "start", "late")
	})
}

func TestClashes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, taken, _ := strings.Cut(listener.Addr().String(), ":")
	w.up("--name", "first", "-p", "127.0.0.1::80", "box", "sleep", "1000")
	port := w.ok("port", "first", "80")

	t.Run("name", func(t *testing.T) {
		w := w.in(t)
		w.fails(125, `"first" is already in use`, "run", "--rm", "--name", "first", "box", "true")
		w.fails(1, `"first" is already in use`, "create", "--name", "first", "box", "true")
		w.ok("create", "--name", "second", "box", "true")
		w.fails(1, "already in use", "rename", "second", "first")
	})
	t.Run("port of another program", func(t *testing.T) {
		w.in(t).fails(125, "bind for 127.0.0.1:"+taken+" failed: port is already allocated", "run", "--rm", "-p", "127.0.0.1:"+taken+":80", "box", "true")
	})
	t.Run("port of another container", func(t *testing.T) {
		w.in(t).fails(125, port+" failed: port is already allocated", "run", "--rm", "-p", port+":80", "box", "true")
	})
	t.Run("port without an address", func(t *testing.T) {
		_, number, _ := strings.Cut(port, ":")
		w.in(t).fails(125, "port is already allocated", "run", "--rm", "-p", number+":80", "box", "true")
	})
	t.Run("address that is not the host's", func(t *testing.T) {
		w.in(t).fails(125, "no such address", "run", "--rm", "-p", "203.0.113.77:8080:80", "box", "true")
	})
	t.Run("container id file", func(t *testing.T) {
		file := filepath.Join(w.dir, "cid")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.in(t).fails(125, "container ID file found", "run", "--rm", "--cidfile", file, "box", "true")
	})
	t.Run("the port is free again", func(t *testing.T) {
		w := w.in(t)
		w.ok("rm", "-f", "first")
		l, err := net.Listen("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
	if ids := w.ok("ps", "-q"); ids != "" {
		t.Errorf("running after clashes: %s", ids)
	}
}

// The least memory is enough to run something, and what is less is refused in words.
func TestLeastMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.fails(125, "minimum memory limit allowed is 6MB", "run", "--rm", "-m", "5m", "box", "true")
	if got := w.ok("run", "--rm", "-m", "6m", "box", "cat", "/sys/fs/cgroup/memory.max"); got != "6291456" {
		t.Errorf("memory.max is %s", got)
	}
}
