// Package docker runs the machine's Docker engine, unchanged, with Manis as a runtime of it, and
// looks at what its users see. The engine is started by the tests on a stage (package stage), with
// directories of its own, and ends with it; it is not the machine's, which may run or not.
//
// What this machine lacks (root, an engine, Compose) makes tests skip, with the reason.
package docker

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"manis/test/stage"
)

func TestMain(m *testing.M) { os.Exit(stage.Main(m, clean)) }

// suite is the engine, started with the first test.
var suite struct {
	once   sync.Once
	engine *stage.Engine
	daemon *exec.Cmd
	before stage.Census
	skip   string
	err    error
}

const socket = "/run/docker.sock"

func docker(t testing.TB) *stage.Engine {
	t.Helper()
	stage.Need(t)
	binary := stage.Manis(t)
	suite.once.Do(func() {
		for _, program := range []string{"dockerd", "docker", "containerd"} {
			if _, err := exec.LookPath(program); err != nil {
				suite.skip = fmt.Sprintf("no %s on this machine (make docker installs it)", program)
				return
			}
		}
		_, archive := stage.Box(t)
		e := &stage.Engine{
			Args: []string{"docker", "-H", "unix://" + socket, "--config", filepath.Join(stage.Dir(), "client")},
			Env:  stage.Environ(stage.Home(), "DOCKER_BUILDKIT=0"), Dir: stage.Dir(),
		}
		stage.Prepare(t, e.Env)
		if suite.err = start(e, binary); suite.err != nil {
			return
		}
		e.OK(t, "load", "-i", archive)
		// A first container makes what stays.
		e.OK(t, "run", "--rm", "box", "true")
		suite.engine = e
		suite.before = take()
	})
	if suite.skip != "" {
		t.Skip(suite.skip)
	}
	if suite.err != nil {
		t.Fatal(suite.err)
	}
	if suite.engine == nil {
		t.Fatal("Docker could not be prepared")
	}
	return suite.engine
}

// start starts the engine and waits until it answers.
func start(e *stage.Engine, binary string) error {
	data := filepath.Join(stage.Dir(), "docker")
	// The example that users are given, but for the path.
	config, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "docker", "daemon.json"))
	if err != nil {
		return err
	}
	file := filepath.Join(stage.Dir(), "daemon.json")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(config), "/usr/local/bin/manis", binary)), 0o644); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(stage.Dir(), "dockerd.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	suite.daemon = exec.Command("dockerd", "--config-file", file, "--data-root", data, "-H", "unix://"+socket, "--default-runtime", "manis", "--experimental")
	suite.daemon.Env, suite.daemon.Stdout, suite.daemon.Stderr = e.Env, log, log
	if err := suite.daemon.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		cmd := exec.Command(e.Args[0], append(slices.Clone(e.Args[1:]), "version")...)
		cmd.Env = e.Env
		if cmd.Run() == nil {
			return nil
		}
	}
	said, _ := os.ReadFile(log.Name())
	return fmt.Errorf("the engine does not answer; it said: %s", said[max(0, len(said)-2000):])
}

// take counts what containers may leave behind. What the engine has of its own is not counted.
func take() stage.Census {
	return slices.DeleteFunc(stage.Take([]string{"/docker/"}), func(item string) bool {
		own := func(prefixes ...string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(item, p) })
		}
		return own("process docker", "process containerd --config", "file /run/docker/containerd/", "file /run/containerd", "file /run/docker/netns", "mount /run/docker/netns/default",
			"mount "+filepath.Join(stage.Dir(), "docker"), "interface docker0", "interface br-") || item == "file /run/manis" || item == "file /run/manis/oci" || item == "file /run/manis/pods"
	})
}

// clean removes everything after the last test, finds what is left, and ends the engine.
func clean() int {
	code := 0
	if e := suite.engine; e != nil {
		list := exec.Command(e.Args[0], append(slices.Clone(e.Args[1:]), "ps", "-aq")...)
		list.Env = e.Env
		if ids, _ := list.Output(); len(ids) > 0 {
			cmd := exec.Command(e.Args[0], append(append(slices.Clone(e.Args[1:]), "rm", "-fv"), strings.Fields(string(ids))...)...)
			cmd.Env = e.Env
			cmd.Run()
		}
		for _, item := range stage.Settled(suite.before, take) {
			fmt.Fprintln(os.Stderr, "left behind by the suite:", item)
			code = 1
		}
	}
	if suite.daemon != nil && suite.daemon.Process != nil {
		suite.daemon.Process.Signal(os.Interrupt)
		done := time.AfterFunc(20*time.Second, func() { suite.daemon.Process.Kill() })
		suite.daemon.Wait()
		done.Stop()
	}
	return code
}

func up(t testing.TB, e *stage.Engine, args ...string) string {
	t.Helper()
	id := e.OK(t, append([]string{"run", "-d"}, args...)...)
	t.Cleanup(func() { e.OK(t, "rm", "-f", "-v", id) })
	return id
}

func field(t testing.TB, e *stage.Engine, name, template string) string {
	t.Helper()
	return e.OK(t, "inspect", "--type", "container", "--format", template, name)
}

var idle = []string{"box", "sh", "-c", `trap 'exit 0' TERM; while :; do sleep 1000 & wait; done`}

func server(page string) []string {
	return []string{"box", "sh", "-c", "mkdir /www; echo " + page + " >/www/index.html; exec httpd -f -p 80 -h /www"}
}

func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func get(t testing.TB, url, want string) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last string
	stage.Eventually(t, url, func() bool {
		resp, err := client.Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		last = string(b)
		return true
	})
	if last != want {
		t.Errorf("%s: %q, want %q", url, last, want)
	}
}

// Docker's shim reads the runtime's log to learn what went wrong.
func TestExitCodes(t *testing.T) {
	d := docker(t)
	t.Parallel()
	for _, c := range []struct {
		name  string
		code  int
		words string
		args  []string
	}{
		{"nothing went wrong", 0, "-manis", []string{"box", "uname", "-r"}},
		{"the command's own", 7, "", []string{"box", "sh", "-c", "exit 7"}},
		{"the engine's own failure", 125, "unknown flag", []string{"--no-such-flag", "box", "true"}},
		{"not executable", 126, "permission denied", []string{"box", "/etc/passwd"}},
		{"no such command", 127, "executable file not found in $PATH", []string{"box", "pangolin"}},
		{"the host's network", 125, "host's network", []string{"--network", "host", "box", "true"}},
		{"as runc is asked for", 0, "", []string{"--runtime", "manis", "--privileged", "--init", "box", "mkdir", "/x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"run", "--rm", "--network", "none"}, c.args...)
			if c.args[0] == "--network" {
				args = append([]string{"run", "--rm"}, c.args...)
			}
			d.Fails(t, c.code, c.words, args...)
		})
	}
	input := strings.Repeat("a line of some length to fill a pipe\n", 20000)
	if r := d.Feed(t, input, "run", "--rm", "-i", "--network", "none", "box", "sh", "-c", "cat; echo end >&2"); r.Code != 0 || r.Out != input || r.Err != "end\n" {
		t.Errorf("%d bytes came back of %d: exit %d, stderr %q", len(r.Out), len(input), r.Code, r.Err[:min(len(r.Err), 500)])
	}
}

func TestTerminal(t *testing.T) {
	d := docker(t)
	t.Parallel()
	term := d.Terminal(t, "run", "--rm", "-it", "--network", "none", "box", "sh")
	term.Await("#")
	term.Type("tty; stty size\n")
	term.Await("/dev/pts/0")
	term.Await("40 120")
	term.Resize(50, 90)
	term.Type("sleep 1; stty size\n")
	term.Await("50 90")
	term.Type("exit 5\n")
	if code := term.End(); code != 5 {
		t.Errorf("exit code %d; the terminal showed %q", code, term.Shown())
	}
}

// One container through everything that can be done with one.
func TestLife(t *testing.T) {
	d := docker(t)
	t.Parallel()
	port := freePort(t)
	shared := t.TempDir()
	c := up(t, d, append([]string{"-p", "127.0.0.1:" + port + ":80", "-m", "300m", "--cpus", "1.5", "--pids-limit", "99", "-e", "A=b", "-w", "/var",
		"-v", shared + ":/shared", "-v", "named:/volume", "--tmpfs", "/scratch:size=1m", "--ulimit", "nofile=321:654", "--sysctl", "net.ipv4.ip_forward=1", "--hostname", "pangolin"}, server("docked")...)...)
	t.Cleanup(func() { d.Run(t, "volume", "rm", "-f", "named") })
	get(t, "http://127.0.0.1:"+port+"/", "docked\n")
	for _, f := range []struct{ name, script, want string }{
		{"host name, environment, directory", "echo $(hostname) $A $PWD", "pangolin b /var"},
		{"limits", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; ulimit -n", "314572800\n150000 100000\n99\n321"},
		{"sysctl", "cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"tmpfs", "df -k /scratch | tail -1 | awk '{print $2}'", "1024"},
		{"volumes", "echo shared >/shared/f; echo kept >/volume/f; cat /shared/f /volume/f", "shared\nkept"},
	} {
		d.Prints(t, f.want, "exec", c, "sh", "-c", f.script)
	}
	if b, err := os.ReadFile(filepath.Join(shared, "f")); string(b) != "shared\n" {
		t.Errorf("the host finds %q, %v", b, err)
	}
	d.Fails(t, 9, "", "exec", c, "sh", "-c", "exit 9")
	// Docker 20.10 says 126 of every exec that fails, later ones 127 here.
	if r := d.Run(t, "exec", c, "pangolin"); r.Code != 126 && r.Code != 127 || !strings.Contains(r.Out+r.Err, "executable file not found in $PATH") {
		t.Errorf("exec of what is not there: %s", r)
	}
	term := d.Terminal(t, "exec", "-it", c, "sh")
	term.Await("#")
	term.Type("stty size; exit 6\n")
	if code := term.End(); code != 6 || !strings.Contains(term.Shown(), "40 120") {
		t.Errorf("exec -it: exit code %d, %q", code, term.Shown())
	}
	d.OK(t, "exec", "-d", c, "sleep", "1001")
	if r := d.Run(t, "top", c); !strings.Contains(r.Out, "httpd -f -p 80") || !strings.Contains(r.Out, "sleep 1001") || len(strings.Split(strings.TrimSpace(r.Out), "\n")) != 3 {
		t.Errorf("top: %s", r)
	}
	if r := d.OK(t, "stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", c); strings.HasPrefix(r, "0B") || strings.HasPrefix(r, "-") {
		t.Errorf("stats: %q", r)
	}
	d.OK(t, "update", "-m", "400m", "--memory-swap", "400m", c)
	d.Prints(t, "419430400", "exec", c, "cat", "/sys/fs/cgroup/memory.max")

	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.OK(t, "cp", file, c+":/www/in")
	d.OK(t, "cp", file, c+":/volume/in")
	get(t, "http://127.0.0.1:"+port+"/in", "from the host\n")
	d.Prints(t, "from the host", "exec", c, "cat", "/volume/in")
	d.OK(t, "cp", c+":/www/index.html", file)
	if b, _ := os.ReadFile(file); string(b) != "docked\n" {
		t.Errorf("what was copied from the container is %q", b)
	}
	if r := d.OK(t, "diff", c); !strings.Contains(r, "A /www/in") {
		t.Errorf("diff: %q", r)
	}
	d.OK(t, "commit", c, "committed")
	t.Cleanup(func() { d.Run(t, "rmi", "-f", "committed") })
	d.Prints(t, "from the host", "run", "--rm", "--network", "none", "committed", "cat", "/www/in")

	d.OK(t, "pause", c)
	d.Fails(t, 1, "paused", "exec", c, "true")
	if got := field(t, d, c, "{{.State.Status}}"); got != "paused" {
		t.Errorf("it is %s", got)
	}
	d.OK(t, "unpause", c)
	d.Fails(t, 1, "running container", "rm", c)
	d.OK(t, "restart", "-t", "0", c)
	get(t, "http://127.0.0.1:"+port+"/in", "from the host\n")
	d.OK(t, "stop", "-t", "1", c)
	if got := field(t, d, c, "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
		t.Errorf("it is %s", got)
	}
	d.Fails(t, 1, "is not running", "exec", c, "true")
	d.OK(t, "cp", c+":/www/in", file)
	d.OK(t, "start", c)
	d.OK(t, "kill", c)
	d.Prints(t, "137", "wait", c)
}

func TestStopAndLogs(t *testing.T) {
	d := docker(t)
	t.Parallel()
	c := up(t, d, "--network", "none", "box", "sh", "-c", "trap 'echo asked; exit 3' TERM; echo ready; echo err >&2; while :; do sleep 0.1; done")
	stage.Eventually(t, "the container", func() bool { return strings.Contains(d.Run(t, "logs", c).Out, "ready\n") })
	d.OK(t, "stop", "-t", "60", c)
	if got := field(t, d, c, "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 3" {
		t.Errorf("it is %s", got)
	}
	if r := d.Run(t, "logs", c); r.Out != "ready\nasked\n" || r.Err != "err\n" {
		t.Errorf("logs: %s", r)
	}
}

func TestRestartAndHealth(t *testing.T) {
	d := docker(t)
	t.Parallel()
	c := up(t, d, "--network", "none", "--restart", "on-failure:2", "box", "sh", "-c", "echo run; exit 3")
	stage.Eventually(t, "the last attempt", func() bool {
		return field(t, d, c, "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}") == "2 exited 3"
	})
	d.Prints(t, "run\nrun\nrun", "logs", c)
	h := up(t, d, append([]string{"--network", "none", "--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "1"}, idle...)...)
	stage.Eventually(t, "ill health", func() bool { return field(t, d, h, "{{.State.Health.Status}}") == "unhealthy" })
	d.OK(t, "exec", h, "touch", "/well")
	stage.Eventually(t, "health", func() bool { return field(t, d, h, "{{.State.Health.Status}}") == "healthy" })
}

// Whatever is killed, the engine hears of the container's end.
func TestKilledMachine(t *testing.T) {
	d := docker(t)
	before := take()
	c := d.OK(t, append([]string{"run", "-d", "--network", "none"}, idle...)...)
	for _, m := range stage.Machines() {
		if groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", m.PID)); strings.Contains(string(groups), c) {
			p, err := os.FindProcess(m.PID)
			if err == nil {
				err = p.Kill()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	stage.Eventually(t, "the container's end", func() bool { return field(t, d, c, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137" })
	d.OK(t, "start", c)
	d.OK(t, "exec", c, "true")
	d.OK(t, "rm", "-f", c)
	for _, item := range stage.Settled(before, take) {
		t.Errorf("left: %s", item)
	}
}

// Two containers on a network of the user's.
func TestNetwork(t *testing.T) {
	d := docker(t)
	t.Parallel()
	d.OK(t, "network", "create", "pangolins")
	t.Cleanup(func() { d.OK(t, "network", "rm", "pangolins") })
	c := up(t, d, append([]string{"--name", "burrow", "--network", "pangolins"}, server("dug")...)...)
	address := field(t, d, c, "{{.NetworkSettings.Networks.pangolins.IPAddress}}")
	other := up(t, d, append([]string{"--network", "pangolins"}, idle...)...)
	d.Prints(t, "dug", "exec", other, "wget", "-q", "-O-", "http://"+address+"/")
	// Docker's name server is on the loopback of the network namespace: by the C library, by UDP and by TCP.
	d.Prints(t, "dug", "exec", other, "wget", "-q", "-O-", "http://burrow/")
	if r := d.Run(t, "exec", other, "nslookup", "-type=a", "burrow", "127.0.0.11"); r.Code != 0 || !strings.Contains(r.Out, address) {
		t.Errorf("nslookup: %s", r)
	}
	query := `\0\030\1\2\1\0\0\1\0\0\0\0\0\0\6burrow\0\0\1\0\1`
	octets := net.ParseIP(address).To4()
	d.Prints(t, fmt.Sprintf("%02x%02x%02x%02x", octets[0], octets[1], octets[2], octets[3]), "exec", other, "sh", "-c",
		`{ printf '`+query+`'; sleep 5; } | nc 127.0.0.11 53 | head -c 48 | tail -c 4 | hexdump -e '4/1 "%02x"'`)
	// The port is still the container's own, and nothing else of the namespace is reached.
	d.Prints(t, "mine", "exec", other, "sh", "-c",
		"mkdir /own; echo mine >/own/index.html; httpd -p 53 -h /own && wget -q -O- http://127.0.0.1:53/ && wget -q -O- http://burrow/ >/dev/null")
	if r := d.Run(t, "exec", other, "sh", "-c", "nc -z 127.0.0.11 54 && echo reached"); strings.Contains(r.Out, "reached") {
		t.Errorf("another port of the name server's address: %s", r)
	}
}

// A running container gets networks and loses them, with their names, and the others go on.
func TestNetworkConnect(t *testing.T) {
	d := docker(t)
	t.Parallel()
	for _, network := range []string{"near", "far", "third"} {
		d.OK(t, "network", "create", network)
		t.Cleanup(func() { d.OK(t, "network", "rm", network) })
	}
	up(t, d, append([]string{"--name", "nest", "--network", "near"}, server("near")...)...)
	far := up(t, d, append([]string{"--name", "den", "--network", "far"}, server("far")...)...)
	// One that starts with several.
	third := d.OK(t, append([]string{"create", "--network", "far"}, idle...)...)
	t.Cleanup(func() { d.OK(t, "rm", "-f", third) })
	d.OK(t, "network", "connect", "near", third)
	d.OK(t, "start", third)
	d.Prints(t, "far\nnear", "exec", third, "sh", "-c", "wget -q -O- http://den/; wget -q -O- http://nest/")

	c := up(t, d, append([]string{"--network", "near"}, idle...)...)
	// Docker gives no name twice.
	cards := func(n int) func() bool {
		return func() bool { return strings.Count(d.OK(t, "exec", c, "ls", "/sys/class/net"), "eth") == n }
	}
	d.Prints(t, "near", "exec", c, "wget", "-q", "-O-", "http://nest/")
	for range 2 {
		d.OK(t, "network", "connect", "far", c)
		stage.Eventually(t, "the second card", cards(2))
		address := field(t, d, c, "{{.NetworkSettings.Networks.far.IPAddress}}")
		stage.Eventually(t, "its address", func() bool { return strings.Contains(d.Run(t, "exec", c, "ip", "addr").Out, address+"/") })
		d.Prints(t, "far\nnear", "exec", c, "sh", "-c", "wget -q -O- http://den/; wget -q -O- http://nest/")
		d.Prints(t, "far", "exec", far, "wget", "-q", "-O-", "http://127.0.0.1/")
		if r := d.Run(t, "exec", far, "ping", "-c", "1", "-w", "10", address); r.Code != 0 {
			t.Errorf("from the other side: %s", r)
		}
		d.OK(t, "network", "disconnect", "far", c)
		stage.Eventually(t, "the end of the second card", cards(1))
		d.Prints(t, "near", "exec", c, "wget", "-q", "-O-", "http://nest/")
	}
	// The first one, with which the machine began.
	d.OK(t, "network", "disconnect", "near", c)
	stage.Eventually(t, "the end of the first card", cards(0))
	d.OK(t, "network", "connect", "third", c)
	stage.Eventually(t, "another first card", cards(1))
}

// Images are built with their steps in machines, by the classic builder: BuildKit brings its own runc.
func TestBuild(t *testing.T) {
	d := docker(t)
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"Dockerfile": "FROM box\nCOPY in /in\nRUN cat /in >/out && uname -r >/kernel\nCMD [\"cat\", \"/out\", \"/kernel\"]\n", "in": "built\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d.OK(t, "build", "-q", "-t", "built", dir)
	lines := strings.Fields(d.OK(t, "run", "--rm", "--network", "none", "built"))
	if len(lines) != 2 || lines[0] != "built" || !strings.HasSuffix(lines[1], "-manis") {
		t.Errorf("the image's command prints %q", lines)
	}
}

// compose is Compose: a plug-in of Docker's command, or the program of former times.
func compose(t testing.TB, d *stage.Engine) *stage.Engine {
	t.Helper()
	if d.Run(t, "compose", "version").Code == 0 {
		return &stage.Engine{Args: append(slices.Clone(d.Args), "compose"), Env: d.Env, Dir: d.Dir}
	}
	program, err := exec.LookPath("docker-compose")
	if err != nil {
		t.Skip("no Compose on this machine (make docker installs it)")
	}
	return &stage.Engine{Args: []string{program, "-H", "unix://" + socket}, Env: d.Env, Dir: d.Dir}
}

// Services know each other by name, whichever of them comes first.
func TestCompose(t *testing.T) {
	d := docker(t)
	c := compose(t, d)
	t.Parallel()
	port := freePort(t)
	file := filepath.Join(t.TempDir(), "compose.yaml")
	text := `
services:
  web:
    image: box
    command: [sh, -c, 'mkdir /www; echo composed >/www/index.html; exec httpd -f -p 80 -h /www']
  front:
    image: box
    command: [sh, -c, 'until wget -q -O /tmp/page http://web/; do sleep 0.1; done; exec httpd -f -p 80 -h /tmp']
    ports: ['127.0.0.1:` + port + `:80']
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Args = append(c.Args, "-f", file, "-p", "pangolin")
	t.Cleanup(func() { c.OK(t, "down", "-t", "0") })
	c.OK(t, "up", "-d")
	stage.Eventually(t, "what one service has from the other", func() bool {
		return c.Run(t, "exec", "-T", "front", "cat", "/tmp/page").Out == "composed\n"
	})
	get(t, "http://127.0.0.1:"+port+"/page", "composed\n")
	if r := c.Run(t, "exec", "-T", "web", "ping", "-c", "1", "-w", "5", "front"); r.Code != 0 {
		t.Errorf("the other way round: %s", r)
	}
}

// What ran out of memory is said to have, whichever of its processes it was, and nothing else is.
func TestOutOfMemory(t *testing.T) {
	d := docker(t)
	t.Parallel()
	for script, want := range map[string]string{
		"exec tail /dev/zero":                     "exited 137 true",
		"tail /dev/zero; exit 9":                  "exited 9 true",
		"sleep 1 & kill -KILL $!; wait; exit 137": "exited 137 false",
	} {
		c := up(t, d, "--network", "none", "-m", "64m", "box", "sh", "-c", script)
		d.OK(t, "wait", c)
		if got := field(t, d, c, "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}"); got != want {
			t.Errorf("%s: it is %s, want %s", script, got, want)
		}
	}
}
