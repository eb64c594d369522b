package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bundleWorld is a world in which containers are made from bundles, by the verbs of an OCI runtime.
type bundleWorld struct {
	*world
	dir string // bundles
}

func newBundles(t testing.TB) *bundleWorld {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("bundles are run by root, or by an engine in a user namespace of its own")
	}
	return &bundleWorld{newWorld(t), t.TempDir()}
}

// bundle makes a bundle with a root filesystem of its own, whose process is a script. change may change
// its configuration.
func (w *bundleWorld) bundle(name, script string, change func(*specs.Spec)) string {
	w.t.Helper()
	dir := filepath.Join(w.dir, name)
	root := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		w.t.Fatal(err)
	}
	content := mutate.Extract(image(w.t, "box"))
	defer content.Close()
	tar := exec.Command("tar", "-C", root, "-xp")
	tar.Stdin = content
	if out, err := tar.CombinedOutput(); err != nil {
		w.t.Fatalf("unpack: %v: %s", err, out)
	}
	w.ok("spec", "--bundle", dir)
	spec := w.config(dir)
	spec.Process.Terminal = false
	spec.Process.Args = []string{"sh", "-c", script}
	spec.Root.Readonly = false
	if change != nil {
		change(spec)
	}
	w.configure(dir, spec)
	return dir
}

func (w *bundleWorld) config(dir string) *specs.Spec {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	spec := new(specs.Spec)
	if err == nil {
		err = json.Unmarshal(b, spec)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return spec
}

func (w *bundleWorld) configure(dir string, spec *specs.Spec) {
	w.t.Helper()
	b, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// state is what the verb says of a container.
func (w *bundleWorld) state(id string) (s struct {
	Status, Bundle string
	Pid            int
}) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.ok("state", id)), &s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *bundleWorld) await(id, status string) {
	w.t.Helper()
	eventually(w.t, id+" is "+status, func() bool { return w.state(id).Status == status })
}

// made creates a container whose output goes to a file, and returns the file.
func (w *bundleWorld) made(id, dir string, flags ...string) string {
	w.t.Helper()
	out := filepath.Join(w.dir, id+".out")
	f, err := os.Create(out)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	cmd := w.command(context.Background(), append(append([]string{"create", "--bundle", dir}, flags...), id)...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := w.launch(cmd); err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		b, _ := os.ReadFile(out)
		w.t.Fatalf("create: %v: %s", err, b)
	}
	w.t.Cleanup(func() { w.manis("delete", "--force", id) })
	return out
}

func TestBundleRun(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", `echo out; echo err >&2; cat; uname -r; exit 7`, nil)
	r := w.manisIn("from stdin\n", "run", "--bundle", dir, "one")
	if r.code != 7 || !strings.HasPrefix(r.stdout, "out\nfrom stdin\n") || !strings.Contains(r.stderr, "err\n") {
		t.Errorf("run: %+v", r)
	}
	var host unix.Utsname
	unix.Uname(&host)
	if release := unix.ByteSliceToString(host.Release[:]); strings.Contains(r.stdout, release) {
		t.Errorf("it ran under the host's kernel %s", release)
	}
	w.fails(1, "does not exist", "state", "one")

	// What it writes is in the bundle's root, live in both directions.
	w.configure(dir, func() *specs.Spec {
		s := w.config(dir)
		s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_CHOWN")
		s.Process.Capabilities.Permitted = append(s.Process.Capabilities.Permitted, "CAP_CHOWN")
		s.Process.Capabilities.Effective = append(s.Process.Capabilities.Effective, "CAP_CHOWN")
		s.Process.Args = []string{"sh", "-c", "echo guest > /made; chown 33:44 /made; cat /given"}
		return s
	}())
	if err := os.WriteFile(filepath.Join(dir, "rootfs/given"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := w.ok("run", "--bundle", dir, "two"); out != "host" {
		t.Errorf("read %q", out)
	}
	work := filepath.Join(dir, "rootfs/habits")
	if err := os.Mkdir(work, 0o777); err != nil {
		t.Fatal(err)
	}
	spec := w.config(dir)
	spec.Process.Args = []string{"probe", "habits", "/habits"}
	w.configure(dir, spec)
	habits(t, w.ok("run", "--bundle", dir, "three"))
	left(t, work)
	// The machine ends with the container: what it has written is on the host by then, however it was written. As the first
	// process of its namespace the program cannot kill itself.
	spec.Process.Args = []string{"sh", "-c", "probe mapped /mapped; exit 3"}
	w.configure(dir, spec)
	w.fails(3, "", "run", "--bundle", dir, "four")
	if b, err := os.ReadFile(filepath.Join(dir, "rootfs/mapped")); err != nil || len(b) != 1<<20 || len(bytes.Trim(b, "x")) != 0 {
		t.Errorf("mapped: %d bytes, %q, %v", len(b), bytes.Trim(b, "x")[:min(20, len(bytes.Trim(b, "x")))], err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "rootfs/made"), &st); err != nil || st.Uid != 33 || st.Gid != 44 {
		t.Errorf("the file belongs to %d:%d, %v", st.Uid, st.Gid, err)
	}
}

func TestBundleLifecycle(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", `trap "echo terminated; exit 3" TERM; echo up; while :; do sleep 0.1; done`, nil)
	pidFile := filepath.Join(w.dir, "pid")
	out := w.made("c", dir, "--pid-file", pidFile)

	s := w.state("c")
	if b, err := os.ReadFile(pidFile); err != nil || strconv.Itoa(s.Pid) != string(b) || unix.Kill(s.Pid, 0) != nil {
		t.Errorf("pid file %q, %v; state says %d", b, err, s.Pid)
	}
	if s.Status != "created" || s.Bundle != dir {
		t.Errorf("state %+v", s)
	}
	if b, _ := os.ReadFile(out); len(b) != 0 {
		t.Errorf("it has written %q before it was started", b)
	}
	w.fails(1, "already exists", "create", "--bundle", dir, "c")
	w.ok("start", "c")
	w.fails(1, "already running", "start", "c")
	eventually(t, "output", func() bool { b, _ := os.ReadFile(out); return string(b) == "up\n" })
	if list := w.ok("list", "--format", "json"); !strings.Contains(list, `"status":"running"`) {
		t.Errorf("list: %s", list)
	}

	if r := w.manis("exec", "c", "sh", "-c", "echo in; exit 5"); r.code != 5 || r.stdout != "in\n" {
		t.Errorf("exec: %+v", r)
	}
	if out := w.ok("exec", "--user", "1000:1000", "--cwd", "/tmp", "--env", "A=b", "--additional-gids", "7", "c", "sh", "-c", "id -u; pwd; echo $A; id -G"); out != "1000\n/tmp\nb\n1000 7" {
		t.Errorf("exec with flags: %q", out)
	}
	w.fails(255, "executable file not found in $PATH", "exec", "c", "nosuch")
	// Programs look for the host's ids; people see the container's.
	if ps := w.ok("ps", "--format", "json", "c"); ps != fmt.Sprintf("[%d]", s.Pid) {
		t.Errorf("ps: %s, the state says %d", ps, s.Pid)
	}
	if ps := strings.Fields(w.ok("ps", "c")); !slices.Contains(ps, "PPID") || !slices.Contains(ps, "trap") {
		t.Errorf("ps: %q", ps)
	}
	w.ok("pause", "c")
	if s := w.state("c"); s.Status != "paused" {
		t.Errorf("paused: %s", s.Status)
	}
	w.fails(255, "paused", "exec", "c", "true")
	w.fails(1, "paused", "pause", "c")
	w.ok("resume", "c")
	w.fails(1, "not paused", "resume", "c")
	w.ok("update", "--pids-limit", "50", "--memory", "100M", "c")
	if got := w.ok("exec", "c", "cat", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/memory.max"); got != "50\n104857600" {
		t.Errorf("after update: %q", got)
	}
	if got := w.ok("events", "--stats", "c"); !strings.Contains(got, `"type":"stats"`) || !strings.Contains(got, `"limit":50`) {
		t.Errorf("events: %s", got)
	}
	w.fails(1, "not stopped", "delete", "c")
	w.ok("kill", "c", "SIGTERM")
	w.await("c", "stopped")
	if b, _ := os.ReadFile(out); string(b) != "up\nterminated\n" {
		t.Errorf("output %q", b)
	}
	w.fails(1, "not running", "kill", "c")
	w.fails(1, "stopped", "start", "c")
	w.fails(255, "stopped", "exec", "c", "true")
	w.ok("delete", "c")
	w.fails(1, "does not exist", "delete", "c")
	w.ok("delete", "--force", "c")
}

func TestBundleHooks(t *testing.T) {
	w := newBundles(t)
	log := filepath.Join(w.dir, "hooks")
	hook := func(name string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c",
			fmt.Sprintf(`read -r s; echo "%s $(echo "$s" | sed 's/.*"status":"\([a-z]*\)".*/\1/') $(readlink /proc/self/ns/net)" >> %s`, name, log)}}
	}
	dir := w.bundle("b", `cat /inside; echo run`, func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			Prestart: []specs.Hook{hook("prestart")}, CreateRuntime: []specs.Hook{hook("createRuntime")}, CreateContainer: []specs.Hook{hook("createContainer")},
			StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `cat > /inside; echo >> /inside`}}},
			Poststart:      []specs.Hook{hook("poststart")}, Poststop: []specs.Hook{hook("poststop")},
		}
	})
	out := w.ok("run", "--bundle", dir, "h")
	inside, rest, _ := strings.Cut(out, "\n")
	var st specs.State
	if err := json.Unmarshal([]byte(inside), &st); err != nil || st.ID != "h" || st.Pid == 0 || st.Status != "created" || rest != "run" {
		t.Errorf("startContainer saw %q, %v; then %q", inside, err, rest)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			t.Fatalf("a hook wrote %q", line)
		}
		names = append(names, f[0]+" "+f[1])
		if inside := f[0] == "createContainer"; inside == (f[2] == own) {
			t.Errorf("%s ran in network namespace %s, the runtime's is %s", f[0], f[2], own)
		}
	}
	want := "prestart creating,createRuntime creating,createContainer creating,poststart running,poststop stopped"
	if got := strings.Join(names, ","); got != want {
		t.Errorf("hooks: %s\nwant   %s", got, want)
	}
}

func TestBundleFailingHooks(t *testing.T) {
	w := newBundles(t)
	fail := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo broken >&2; exit 4"}}}
	second := 1
	hang := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 100"}, Timeout: &second}}
	for name, c := range map[string]struct {
		hooks specs.Hooks
		words string
	}{
		"prestart":        {specs.Hooks{Prestart: fail}, "broken"},
		"createRuntime":   {specs.Hooks{CreateRuntime: fail}, "createRuntime hook #0"},
		"createContainer": {specs.Hooks{CreateContainer: fail}, "createContainer hook #0"},
		"startContainer":  {specs.Hooks{StartContainer: fail}, "broken"},
		"hanging":         {specs.Hooks{CreateRuntime: hang}, "more than 1 s"},
		"hanging inside":  {specs.Hooks{StartContainer: hang}, "1 s"},
		"missing":         {specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/no/such"}}}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &bundleWorld{w.in(t), w.dir}
			dir := w.bundle(strings.ReplaceAll(name, " ", "-"), "echo ran", func(s *specs.Spec) { s.Hooks = &c.hooks })
			r := w.manis("run", "--bundle", dir, "f")
			if r.code != 1 || !strings.Contains(r.stderr, c.words) || strings.Contains(r.stdout, "ran") {
				t.Errorf("%+v, want code 1 and %q", r, c.words)
			}
			w.fails(1, "does not exist", "state", "f")
		})
	}
	// One that fails after the start ends the container; nothing can be undone when the process is gone.
	dir := w.bundle("poststart", "echo ran; sleep 100", func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: fail} })
	if r := w.manis("run", "--bundle", dir, "l"); r.code != 1 || !strings.Contains(r.stderr, "poststart hook #0") {
		t.Errorf("poststart: %s", r)
	}
	w.fails(1, "does not exist", "state", "l")
	dir = w.bundle("poststop", "echo ran", func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: fail} })
	if r := w.manis("run", "--bundle", dir, "l"); r.code != 0 || r.stdout != "ran\n" || !strings.Contains(r.stderr, "broken") {
		t.Errorf("poststop: %s", r)
	}
}

func TestBundleTerminal(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", `stty size; read x; echo "got $x"; stty size; exit 6`, func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Height: 33, Width: 77}
	})
	w.fails(1, "console socket", "create", "--bundle", dir, "t")
	w.fails(1, "console socket", "create", "--bundle", dir, "--console-socket", filepath.Join(w.dir, "nobody"), "t")
	w.fails(1, "does not exist", "state", "t")

	socket := filepath.Join(w.dir, "console")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	masters := make(chan *os.File, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, rights := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(b, rights)
		if err != nil {
			return
		}
		if messages, err := unix.ParseSocketControlMessage(rights[:n]); err == nil && len(messages) == 1 {
			if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
				masters <- os.NewFile(uintptr(fds[0]), "master")
			}
		}
	}()
	w.made("t", dir, "--console-socket", socket)
	var master *os.File
	select {
	case master = <-masters:
		defer master.Close()
	case <-time.After(10 * time.Second):
		t.Fatal("no terminal came")
	}
	w.ok("start", "t")
	said := ""
	read := func(until string) {
		t.Helper()
		buf := make([]byte, 4096)
		for !strings.Contains(said, until) {
			n, err := master.Read(buf)
			said += string(buf[:n])
			if err != nil {
				t.Fatalf("%v after %q, want %q", err, said, until)
			}
		}
	}
	read("33 77")
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // the change has to reach the guest
	if _, err := master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	read("got hello")
	read("40 100")
	w.await("t", "stopped")
}

// TestBundleBadInput tries what no caller should ask for.
func TestBundleBadInput(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", "true", nil)
	good := w.config(dir)
	w.fails(1, "config.json", "create", "--bundle", filepath.Join(w.dir, "nothing"), "x")
	for id, words := range map[string]string{"../x": "invalid container ID", "a/b": "invalid container ID", "..": "invalid container ID", "": "cannot be empty", strings.Repeat("x", 300): "at most 255", "a b": "invalid container ID"} {
		w.fails(1, words, "run", "--bundle", dir, id)
		w.fails(1, words, "delete", "--force", id)
	}
	for name, c := range map[string]struct {
		change func(*specs.Spec)
		words  string
	}{
		"no arguments": {func(s *specs.Spec) { s.Process.Args = nil }, "process.args"},
		"relative cwd": {func(s *specs.Spec) { s.Process.Cwd = "tmp" }, "process.cwd"},
		"no root":      {func(s *specs.Spec) { s.Root = nil }, "root"},
		"missing root": {func(s *specs.Spec) { s.Root.Path = "nowhere" }, "nowhere"},
		"host network": {func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces[:1], s.Linux.Namespaces[2:]...) }, "network"},
		"host IPC":     {func(s *specs.Spec) { s.Linux.Namespaces[2].Path = "/proc/1/ns/ipc" }, "ipc"},
		"missing source": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Source: "/no/such", Type: "bind", Options: []string{"bind"}})
		}, "no such file"},
		"unknown option": {func(s *specs.Spec) { s.Mounts[1].Options = append(s.Mounts[1].Options, "idmap") }, "idmap"},
		"seccomp listener": {func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/x", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}
		}, "seccomp"},
		"twice the same":  {func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) }, "namespaces"},
		"missing command": {func(s *specs.Spec) { s.Process.Args = []string{"/no/such"} }, "no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &bundleWorld{w.in(t), w.dir}
			s := *good
			process, root, linux := *good.Process, *good.Root, *good.Linux
			s.Process, s.Root, s.Linux = &process, &root, &linux
			s.Linux.Namespaces = append([]specs.LinuxNamespace(nil), good.Linux.Namespaces...)
			s.Mounts = append([]specs.Mount(nil), good.Mounts...)
			c.change(&s)
			w.configure(dir, &s)
			w.fails(1, c.words, "run", "--bundle", dir, "x")
			w.fails(1, "does not exist", "state", "x")
		})
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{\n  \"ociVersion\": \"1.0.0\",\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.fails(1, "config.json", "run", "--bundle", dir, "x")
	w.configure(dir, good)
	w.fails(1, "--preserve-fds", "run", "--preserve-fds", "2", "--bundle", dir, "x")
	w.fails(1, "does not exist", "--debug", "kill", "nosuch", "9")

	// The log is what Docker's shim reads errors from.
	logFile := filepath.Join(w.dir, "log.json")
	w.fails(1, "does not exist", "--log", logFile, "--log-format", "json", "start", "nosuch")
	var line struct{ Level, Msg string }
	if b, err := os.ReadFile(logFile); err != nil || json.Unmarshal(b, &line) != nil || line.Level != "error" || !strings.Contains(line.Msg, "does not exist") {
		t.Errorf("log %q, %v", b, err)
	}
	// A root that cannot be written to.
	w.fails(1, "make the directory of containers", "--root", "/sys/manis", "--log", "/dev/null", "run", "--bundle", dir, "x")
}

// TestBundleKilled kills what a container consists of.
func TestBundleKilled(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", "sleep 1000", nil)
	type process struct{ proxy, pod, vm int }
	for name, victim := range map[string]func(process) int{
		"proxy": func(p process) int { return p.proxy },
		"pod":   func(p process) int { return p.pod },
		"VM":    func(p process) int { return p.vm },
	} {
		t.Run(name, func(t *testing.T) {
			w := &bundleWorld{w.in(t), w.dir}
			w.made("k", dir)
			w.ok("start", "k")
			p := process{proxy: w.state("k").Pid}
			p.pod, p.vm = podOf(t, w, "k")
			kill(t, victim(p))
			begin := time.Now()
			w.await("k", "stopped")
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("it was stopped after %v", d)
			}
			w.fails(1, "not running", "kill", "k")
			w.ok("delete", "k")
			for _, pid := range []int{p.proxy, p.pod, p.vm} {
				eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
			}
		})
	}
	t.Run("create", func(t *testing.T) {
		w := &bundleWorld{w.in(t), w.dir}
		for _, delay := range []time.Duration{5, 20, 60, 150, 300, 600} {
			cmd := w.command(context.Background(), "create", "--bundle", dir, "cut")
			if err := w.launch(cmd); err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay * time.Millisecond)
			cmd.Process.Kill()
			cmd.Wait()
			w.ok("delete", "--force", "cut")
			w.fails(1, "does not exist", "state", "cut")
		}
	})
}

// childOf is a child of a process, 0 if it has none.
func childOf(pid int) (child int) {
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, p := range children {
		if b, _ := os.ReadFile(p); len(strings.Fields(string(b))) > 0 {
			child, _ = strconv.Atoi(strings.Fields(string(b))[0])
		}
	}
	return child
}

// podOf finds the processes of a container's pod and machine.
func podOf(t testing.TB, w *bundleWorld, id string) (pod, vm int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.run, "oci", id, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var st struct{ Pod string }
	if err := json.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		if string(b) == "manis\x00pod\x00"+st.Pod+"\x00" {
			pod, _ = strconv.Atoi(filepath.Base(filepath.Dir(p)))
		}
	}
	vm = childOf(pod)
	if pod == 0 || vm == 0 {
		t.Fatalf("pod %d, machine %d of %s", pod, vm, id)
	}
	return pod, vm
}

// TestManyExecs runs a hundred processes at once in one container.
func TestManyExecs(t *testing.T) {
	w := newBundles(t)
	w.made("m", w.bundle("b", "sleep 1000", nil))
	w.ok("start", "m")
	type answer struct {
		i int
		r result
	}
	answers := make(chan answer)
	const n = 100
	for i := range n {
		go func() {
			answers <- answer{i, w.manisIn(strconv.Itoa(i)+"\n", "exec", "m", "sh", "-c", fmt.Sprintf("read x; echo $x; exit %d", i))}
		}()
	}
	for range n {
		if a := <-answers; a.r.code != a.i || a.r.stdout != strconv.Itoa(a.i)+"\n" {
			t.Errorf("exec %d: %+v", a.i, a.r)
		}
	}
}

// A container that takes more memory than its limit is killed in the guest, and is told of as out of memory; the control group on the
// host leaves the machine room.
func TestBundleMemory(t *testing.T) {
	t.Parallel()
	w := newBundles(t)
	limit := int64(64 << 20)
	group := fmt.Sprintf("/manis-test-%d/memory", os.Getpid())
	t.Cleanup(func() { removeGroups(filepath.Dir(group)) })
	dir := w.bundle("b", "", func(s *specs.Spec) {
		s.Process.Args = []string{"probe", "hold", "200"}
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
		s.Linux.CgroupsPath = group
	})
	w.made("c", dir)
	events := w.begin("", "events", "c")
	var features struct{ Annotations map[string]string }
	if err := json.Unmarshal([]byte(w.ok("features")), &features); err != nil {
		t.Fatal(err)
	}
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(features.Annotations["manis.overhead."+name], 10, 64)
		if err != nil || n == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	least := uint64(limit) + number("memoryBytes") + uint64(limit)/number("memoryDivisor")
	if got := groupLimit(t, group); got < least || got > 2*least {
		t.Errorf("the host's limit is %d bytes, declared is a need of %d", got, least)
	}
	w.ok("start", "c")
	w.await("c", "stopped")
	if r := events.wait(); !strings.Contains(r.stdout, `"oom"`) {
		t.Errorf("events: %s", r)
	}
	w.ok("delete", "c")
}

// Limits of block I/O hold for the machine's control group on the host, are changed by update, and where they cannot hold
// create says so and leaves nothing.
func TestBundleBlockIO(t *testing.T) {
	t.Parallel()
	w := newBundles(t)
	disk := wholeDisk(t)
	group := fmt.Sprintf("/manis-test-%d/blockio", os.Getpid())
	t.Cleanup(func() { removeGroups(filepath.Dir(group)) })
	limited := func(major, minor int64) func(s *specs.Spec) {
		return func(s *specs.Spec) {
			throttle := specs.LinuxThrottleDevice{Rate: 50 << 20}
			throttle.Major, throttle.Minor = major, minor
			s.Linux.Resources = &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
				ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{throttle}, ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{throttle},
			}}
			s.Linux.CgroupsPath = group
		}
	}
	major, minor := int64(unix.Major(disk)), int64(unix.Minor(disk))
	dir := w.bundle("b", "sleep 1000", limited(major, minor))
	w.made("c", dir)
	const rate = 50 << 20
	check := func(read uint64) {
		t.Helper()
		name := fmt.Sprintf("%d:%d", major, minor)
		if b, err := os.ReadFile("/sys/fs/cgroup" + group + "/io.max"); err == nil {
			if want := fmt.Sprintf("%s rbps=%d wbps=max riops=max wiops=%d\n", name, read, rate); string(b) != want {
				t.Errorf("io.max: %q, want %q", b, want)
			}
			return
		}
		for file, n := range map[string]uint64{"read_bps": read, "write_iops": rate} {
			b, err := os.ReadFile("/sys/fs/cgroup/blkio" + group + "/blkio.throttle." + file + "_device")
			if want := fmt.Sprintf("%s %d\n", name, n); err != nil || string(b) != want {
				t.Errorf("%s: %q, %v, want %q", file, b, err, want)
			}
		}
	}
	check(rate)
	// The machine is in there.
	procs, _ := filepath.Glob("/sys/fs/cgroup/blkio" + group + "/cgroup.procs")
	if len(procs) == 0 {
		procs = []string{"/sys/fs/cgroup" + group + "/cgroup.procs"}
	}
	b, err := os.ReadFile(procs[0])
	if err != nil {
		t.Fatal(err)
	}
	machine := false
	for _, pid := range strings.Fields(string(b)) {
		exe, _ := os.Readlink("/proc/" + pid + "/exe")
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		machine = machine || strings.Contains(exe+string(comm), "qemu")
	}
	if !machine {
		t.Errorf("QEMU is not in the control group: %s", b)
	}
	w.ok("start", "c")
	file := filepath.Join(w.dir, "limits.json")
	limits := fmt.Sprintf(`{"blockIO":{"throttleReadBpsDevice":[{"major":%d,"minor":%d,"rate":%d}]}}`, major, minor, rate/2)
	if err := os.WriteFile(file, []byte(limits), 0o644); err != nil {
		t.Fatal(err)
	}
	w.ok("update", "-r", file, "c")
	check(rate / 2)
	w.ok("delete", "--force", "c")

	w.configure(dir, func() *specs.Spec { s := w.config(dir); limited(4095, 0)(s); return s }())
	w.fails(1, "config.json: linux.resources.blockIO: disk 4095:0:", "create", "--bundle", dir, "d")
	w.fails(1, "does not exist", "state", "d")
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + group); left != nil {
		t.Errorf("control groups are left: %v", left)
	}
}

// wholeDisk is the number of a disk of the host that a control group can limit.
func wholeDisk(t *testing.T) uint64 {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device", "/sys/fs/cgroup/cgroup.controllers"} {
		b, err := os.ReadFile(pattern)
		if err != nil || strings.HasSuffix(pattern, "controllers") && !slices.Contains(strings.Fields(string(b)), "io") {
			continue
		}
		disks, _ := filepath.Glob("/sys/block/*/device")
		for _, d := range disks {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(d), "dev"))
			var major, minor uint32
			if err == nil {
				if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err == nil {
					return unix.Mkdev(major, minor)
				}
			}
		}
	}
	t.Skip("this host has no control groups of block I/O, or no disk")
	return 0
}

// groupLimit is the limit of memory of a control group, bytes.
func groupLimit(t *testing.T, group string) uint64 {
	t.Helper()
	for _, path := range []string{"/sys/fs/cgroup/memory" + group + "/memory.limit_in_bytes", "/sys/fs/cgroup" + group + "/memory.max"} {
		if b, err := os.ReadFile(path); err == nil {
			n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			return n
		}
	}
	t.Skip("this host has no control groups of memory")
	return 0
}

// removeGroups removes an empty control group wherever there is one of this path.
func removeGroups(path string) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		all, _ := filepath.Glob(dir + path)
		for _, d := range all {
			os.Remove(d)
		}
	}
}

// With manisd, containers of bundles get machines that run already: sizes that the settings name, and those that were
// asked for in vain before. Neither the end of manisd nor that of a machine that waits harms anybody.
func TestBundlePool(t *testing.T) {
	t.Parallel()
	w := newBundles(t)
	dir := w.bundle("b", "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; ls /sys/class/net; hostname", func(s *specs.Spec) {
		s.Hostname = "mine"
	})
	sleeps := w.bundle("s", "sleep 1000", nil)
	d := w.startDaemon("--config", w.settings(`{"sizes": [{"waiting": 1, "engines": true}], "otherSizes": 0}`))
	claims := func() (n int) {
		for _, p := range w.pool() {
			n, _ = strconv.Atoi(p.Claims)
		}
		return n
	}
	seen := map[string]bool{}
	for i := range 3 {
		w.awaitWaiting(1)
		out := strings.Fields(w.ok("run", "--bundle", dir, fmt.Sprint("c", i)))
		if len(out) < 4 || out[len(out)-1] != "mine" || out[len(out)-2] != "lo" {
			t.Fatalf("it says %q", out)
		}
		for _, random := range []string{out[0], strings.Join(out[1:len(out)-2], " ")} {
			if seen[random] {
				t.Errorf("two containers drew %s", random)
			}
			seen[random] = true
		}
		if got := claims(); got != i+1 {
			t.Errorf("%d machines were claimed, of %d", got, i+1)
		}
	}
	w.awaitWaiting(1)
	w.made("k", sleeps)
	w.ok("start", "k")
	if got := claims(); got != 4 {
		t.Errorf("%d machines were claimed, of 4", got)
	}
	// One that waits and is dead is nobody's.
	w.awaitWaiting(1)
	d.end(unix.SIGKILL)
	if w.state("k").Status != "running" {
		t.Error("a container ended with manisd")
	}
	if out := w.ok("run", "--bundle", dir, "after"); !strings.Contains(out, "mine") {
		t.Errorf("without manisd: %q", out)
	}
	// Its owner is the only one that is left.
	owner := 0
	eventually(t, "the others to end", func() bool {
		all := w.processes()
		for owner = range all {
		}
		return len(all) == 1
	})
	vm := childOf(owner)
	if vm == 0 {
		t.Fatalf("process %d has no machine", owner)
	}
	kill(t, vm)
	w.await("k", "stopped")
	w.ok("delete", "k")
}

// What a caller has open, a port that it keeps or a lock, is not kept open by what lives on.
func TestBundleKeepsNoDescriptors(t *testing.T) {
	t.Parallel()
	w := newBundles(t)
	dir := w.bundle("b", "sleep 1000", nil)
	r, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := w.command(context.Background(), "create", "--bundle", dir, "c")
	cmd.ExtraFiles = []*os.File{theirs}
	err = w.launch(cmd)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.manis("delete", "--force", "c") })
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes, %v: somebody has it open", n, err)
	}
}

// TestBundleKilledCreate kills a runtime at more and more of its work. Whether it was done then or not: nothing runs on that nobody has
// been told of, and what was told of can be removed.
func TestBundleKilledCreate(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", "sleep 1000", nil)
	w.made("warm", dir)
	w.ok("delete", "--force", "warm")
	eventually(t, "the first machine to end", func() bool { return len(w.processes()) == 0 })
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	done := 0
	for n := 0; n < 16 && done == 0; n++ {
		id := fmt.Sprintf("killed%d", n)
		pidFile := filepath.Join(w.dir, id)
		cmd := w.command(t.Context(), "create", "--bundle", dir, "--pid-file", pidFile, id)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(n) * 75 * time.Millisecond)
		cmd.Process.Kill()
		if cmd.Wait() == nil {
			done++ // before it was killed
		} else if _, err := os.Stat(pidFile); err != nil {
			eventually(t, "what was made by a runtime that was killed after "+fmt.Sprint(n*75)+" ms to end", func() bool {
				for _, line := range w.processes() {
					if strings.Contains(line, "/pods/") {
						return false
					}
				}
				return true
			})
		}
		w.ok("delete", "--force", id)
		eventually(t, "everything of "+id+" to end", func() bool { return len(w.processes()) == 0 })
	}
	if done == 0 {
		t.Log("no creation came to its end in time")
	}
}
