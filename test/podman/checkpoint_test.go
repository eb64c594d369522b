package podman

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"manis/test/stage"
)

// steps counts in its memory, one step for each file goN, and appends to a file that it has open.
var steps = []string{"box", "sh", "-c", "exec 3>>/log; i=0; while :; do i=$((i+1)); until [ -e /go$i ]; do sleep 0.05; done; echo step $i >&3; echo step $i; done"}

// needCheckpoints skips where Podman does not ask the runtime: it wants CRIU on the host, which is not
// used.
func needCheckpoints(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("criu"); err != nil {
		t.Skip("no CRIU on this machine, whose version Podman asks for (make podman installs it)")
	}
}

// goTo lets a container go steps, and waits until it has.
func goTo(t testing.TB, p *stage.Engine, c string, from, to string) {
	t.Helper()
	for n := from[0]; n <= to[0]; n++ {
		p.OK(t, "exec", c, "touch", "/go"+string(n))
	}
	stage.Eventually(t, "step "+to, func() bool { return strings.HasSuffix(p.Run(t, "exec", c, "cat", "/log").Out, "step "+to+"\n") })
}

func TestCheckpoint(t *testing.T) {
	p := podman(t)
	needCheckpoints(t)
	t.Parallel()
	c := up(t, p, append([]string{"--network", "none"}, steps...)...)
	goTo(t, p, c, "1", "2")
	p.OK(t, "container", "checkpoint", c)
	if got := field(t, p, c, "{{.State.Status}} {{.State.Checkpointed}}"); got != "exited true" {
		t.Errorf("it is %s", got)
	}
	p.OK(t, "container", "restore", c)
	goTo(t, p, c, "3", "3")
	p.Prints(t, "step 1\nstep 2\nstep 3", "exec", c, "cat", "/log")
	stage.Eventually(t, "its output", func() bool { return strings.HasSuffix(p.Run(t, "logs", c).Out, "step 3\n") })
	// Kept, it is continued and saved in its turn.
	p.OK(t, "container", "checkpoint", "--keep", c)
	p.OK(t, "container", "restore", "--keep", c)
	goTo(t, p, c, "4", "4")
	p.OK(t, "container", "checkpoint", "--leave-running", "--print-stats", c)
	goTo(t, p, c, "5", "5")
	p.OK(t, "kill", c)
	p.Prints(t, "137", "wait", c)
	// Its files are not as they were any more.
	p.Fails(t, 125, `the container has the file "/log" open`, "container", "restore", "--keep", c)
}

// An archive becomes any number of containers.
func TestCheckpointArchive(t *testing.T) {
	p := podman(t)
	needCheckpoints(t)
	t.Parallel()
	archive := filepath.Join(t.TempDir(), "archive.tar.zst")
	c := up(t, p, append([]string{"--network", "none"}, steps...)...)
	goTo(t, p, c, "1", "2")
	r := p.Run(t, "container", "checkpoint", "--leave-running", "--export", archive, c)
	if r.Code != 0 || strings.Contains(r.Err, "error") {
		t.Fatalf("checkpoint: %s", r)
	}
	var all []string
	for _, name := range []string{"restored-one", "restored-two"} {
		removeAtEnd(t, p, name)
		p.OK(t, "container", "restore", "--import", archive, "--name", name)
		all = append(all, name)
	}
	goTo(t, p, c, "3", "3")
	goTo(t, p, all[0], "3", "4")
	goTo(t, p, all[1], "3", "3")
	p.Prints(t, "step 1\nstep 2\nstep 3", "exec", all[1], "cat", "/log")
	// Under another name it is the same for all that Podman asks of it.
	p.OK(t, "pause", all[0])
	p.OK(t, "unpause", all[0])
	p.OK(t, "update", "-m", "300m", all[0])
	p.OK(t, "stop", "-t", "0", all[0])
}

// A server is reached as before, and one that was imported at addresses of its own.
func TestCheckpointServer(t *testing.T) {
	p := podman(t)
	needCheckpoints(t)
	t.Parallel()
	archive := filepath.Join(t.TempDir(), "archive.tar.gz")
	port, other := freePort(t), freePort(t)
	c := up(t, p, append([]string{"-p", "127.0.0.1:" + port + ":80"}, server("saved")...)...)
	get(t, "http://127.0.0.1:"+port+"/", "saved\n")
	p.OK(t, "container", "checkpoint", c)
	p.OK(t, "container", "restore", c)
	get(t, "http://127.0.0.1:"+port+"/", "saved\n")
	p.OK(t, "container", "checkpoint", "--leave-running", "--export", archive, "--compress", "gzip", c)
	removeAtEnd(t, p, "imported")
	p.OK(t, "container", "restore", "--import", archive, "--name", "imported", "--ignore-static-ip", "--ignore-static-mac", "-p", "127.0.0.1:"+other+":80")
	for _, at := range []string{port, other} {
		get(t, "http://127.0.0.1:"+at+"/", "saved\n")
	}
	address := field(t, p, "imported", "{{.NetworkSettings.IPAddress}}")
	if address == field(t, p, c, "{{.NetworkSettings.IPAddress}}") {
		t.Errorf("both have the address %s", address)
	}
	get(t, "http://"+address+"/", "saved\n")
}

// A terminal goes on with another reader.
func TestCheckpointTerminal(t *testing.T) {
	p := podman(t)
	needCheckpoints(t)
	t.Parallel()
	c := up(t, p, "-it", "--network", "none", "box", "sh", "-c", "stty -echo; n=before; while read x; do echo $n $x; n=$x; done; exit 5")
	first := p.Terminal(t, "attach", c)
	first.Type("one\n")
	first.Await("before one")
	p.OK(t, "container", "checkpoint", c)
	first.End()
	p.OK(t, "container", "restore", c)
	second := p.Terminal(t, "attach", c)
	second.Type("two\n")
	second.Await("one two")
	second.Type("\x04")
	second.End()
	p.Prints(t, "5", "wait", c)
}

// The containers of a pod share a machine, which is saved for none of them.
func TestCheckpointPod(t *testing.T) {
	p := podman(t)
	needCheckpoints(t)
	p.OK(t, "pod", "create", "--name", "saved-den", "--network", "none")
	t.Cleanup(func() { p.OK(t, "pod", "rm", "-f", "-i", "-t", "0", "saved-den") })
	c := p.OK(t, append([]string{"run", "-d", "--pod", "saved-den"}, steps...)...)
	p.Fails(t, 125, "shares its machine with others of its pod", "container", "checkpoint", c)
	goTo(t, p, c, "1", "1")
}
