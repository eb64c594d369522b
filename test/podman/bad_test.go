package podman

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"manis/test/stage"
)

// A container that was started with --rm leaves nothing, however it ends. Nothing else runs
// meanwhile: tests that are not parallel come first.
func TestNothingIsLeft(t *testing.T) {
	p := podman(t)
	// A first container makes the bridge, which stays.
	p.OK(t, "run", "--rm", "box", "true")
	before := take(p)
	for _, c := range []struct {
		name string
		run  func()
	}{
		{"an end of its own", func() { p.Fails(t, 3, "", "run", "--rm", "-v", "/anonymous", "box", "sh", "-c", "exit 3") }},
		{"a published port", func() {
			p.OK(t, "run", "-d", "--rm", "--name", "left", "-p", "127.0.0.1:"+freePort(t)+":80", "box", "sleep", "1000")
			p.OK(t, "stop", "-t", "0", "left")
		}},
		{"a command that is not there", func() { p.Fails(t, 127, "", "run", "--rm", "box", "pangolin") }},
		{"a pod", func() {
			p.OK(t, "run", "-d", "--rm", "--pod", "new:left", "box", "sleep", "1000")
			p.OK(t, "run", "--rm", "--pod", "left", "box", "true")
			p.OK(t, "pod", "rm", "-f", "-t", "0", "left")
		}},
	} {
		c.run()
		for _, item := range left(p, before) {
			t.Errorf("%s left: %s", c.name, item)
		}
	}
}

// hostSide finds the processes of a container on the host.
func hostSide(t testing.TB, p *stage.Engine, c string) (proxy, pod, machine int) {
	t.Helper()
	proxy, err := strconv.Atoi(field(t, p, c, "{{.State.Pid}}"))
	if err != nil || proxy == 0 {
		t.Fatalf("the proxy of %s: %d, %v", c, proxy, err)
	}
	// The machine and the pod are in the container's control group.
	for _, m := range stage.Machines() {
		groups, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.PID), "cgroup"))
		if strings.Contains(string(groups), c) {
			machine = m.PID
		}
	}
	for _, o := range stage.Processes() {
		groups, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(o.PID), "cgroup"))
		if strings.Contains(string(groups), c) && strings.HasPrefix(o.Command, "manis ") {
			pod = o.PID
		}
	}
	if pod == 0 || machine == 0 {
		t.Fatalf("of container %s there are the pod %d and the machine %d", c, pod, machine)
	}
	return proxy, pod, machine
}

// Whatever is killed, Podman hears of the container's end, and can remove and start it.
func TestKilledProcesses(t *testing.T) {
	p := podman(t)
	for _, name := range []string{"proxy", "pod", "machine"} {
		t.Run(name, func(t *testing.T) {
			before := take(p)
			c := p.OK(t, "run", "-d", "--network", "none", "box", "sleep", "1000")
			defer p.OK(t, "rm", "-f", "-i", "-t", "0", c)
			proxy, pod, machine := hostSide(t, p, c)
			victim := map[string]int{"proxy": proxy, "pod": pod, "machine": machine}[name]
			if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed := time.Now()
			stage.Eventually(t, "the container's end", func() bool {
				return field(t, p, c, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
			})
			t.Logf("Podman knew after %s", time.Since(killed).Round(10*time.Millisecond))
			p.OK(t, "start", c)
			p.OK(t, "exec", c, "true")
			p.OK(t, "rm", "-f", "-t", "0", c)
			for _, item := range left(p, before) {
				t.Errorf("left: %s", item)
			}
		})
	}
}

// A runtime that is killed while it makes a container leaves nothing that stays.
func TestKilledInCreate(t *testing.T) {
	p := podman(t)
	before := take(p)
	for _, wait := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, 500 * time.Millisecond} {
		name := "killed-" + strconv.Itoa(int(wait.Milliseconds()))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		cmd := p.Command(ctx, "run", "-d", "--network", "none", "--name", name, "box", "sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var runtime int
		for end := time.Now().Add(30 * time.Second); runtime == 0 && time.Now().Before(end); {
			list := stage.Processes()
			if i := slices.IndexFunc(list, func(o stage.Process) bool {
				return strings.HasPrefix(o.Command, stage.Manis(t)) && strings.Contains(o.Command, " create ")
			}); i >= 0 {
				runtime = list[i].PID
			}
		}
		if runtime == 0 {
			t.Fatal("the runtime did not appear")
		}
		time.Sleep(wait) // how far it comes is what is tried
		syscall.Kill(runtime, syscall.SIGKILL)
		cmd.Wait()
		cancel()
		p.OK(t, "rm", "-f", "-t", "0", name)
	}
	for _, item := range left(p, before) {
		t.Errorf("left: %s", item)
	}
	p.OK(t, "run", "--rm", "--network", "none", "box", "true")
}

func TestRefusals(t *testing.T) {
	p := podman(t)
	t.Parallel()
	p.OK(t, "create", "--name", "taken", "--network", "none", "box", "true")
	t.Cleanup(func() { p.OK(t, "rm", "-f", "taken") })
	p.Fails(t, 125, "already in use", "run", "--name", "taken", "box", "true")
	p.Fails(t, 126, "host's network", "run", "--rm", "--network", "host", "box", "true")
	p.Fails(t, 255, "running containers", "exec", "taken", "true")
}

// Who asks for the host's network may have the user-mode one, by which the stage's loopback is not reached.
func TestUserModeNetwork(t *testing.T) {
	p := podman(t)
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	run := []string{"run", "--rm", "--network", "host", "--annotation", "manis.network=user", "box"}
	p.Prints(t, "192.168.127.1", append(run, "sh", "-c", "ip route | awk '/default/ {print $3}'")...)
	p.Prints(t, "refused", append(run, "sh", "-c", "wget -q -O- http://192.168.127.1:"+strconv.Itoa(l.Addr().(*net.TCPAddr).Port)+" 2>/dev/null || echo refused")...)
	p.Fails(t, 126, "want user", "run", "--rm", "--network", "host", "--annotation", "manis.network=host", "box", "true")
}
