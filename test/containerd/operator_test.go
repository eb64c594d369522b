package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// operator is the command line of who looks after the node.
func operator(t testing.TB) *stage.Engine {
	t.Helper()
	ctr(t)
	return &stage.Engine{Args: []string{stage.Manis(t)}, Env: suite.env, Dir: stage.Dir()}
}

// listing is ps --engines, by ids.
func listing(t testing.TB, flags ...string) map[string]map[string]string {
	t.Helper()
	out := operator(t).OK(t, append([]string{"ps", "--engines", "--no-trunc", "--format", "json"}, flags...)...)
	rows := make(map[string]map[string]string)
	for line := range strings.Lines(out) {
		var row map[string]string
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("ps --engines: %v: %s", err, line)
		}
		rows[row["ID"]] = row
	}
	return rows
}

// shows fails when a row has other fields than these.
func shows(t testing.TB, row map[string]string, want map[string]string) {
	t.Helper()
	for field, value := range want {
		if row[field] != value {
			t.Errorf("%s is %q, want %q, in %v", field, row[field], value, row)
		}
	}
}

// TestOperator is what manis ps, exec, top, stats, inspect and logs say of a pod of Kubernetes'.
func TestOperator(t *testing.T) {
	m := operator(t)
	p := newPod(t, "seen", nil)
	machine := podMachine(t, p)
	shows(t, listing(t)[p.id], map[string]string{
		"Names": "default/seen", "Engine": "containerd/k8s.io", "Image": "-", "State": "running", "Machine": strconv.Itoa(machine), "Pod": p.id,
	})
	m.Fails(t, 1, "no container is in it", "exec", p.id, "true")
	one := p.start("one", nil, "sh", "-c", idle)
	// containerd has the shim forget it.
	ended := p.start("ended", nil, "true")
	stage.Eventually(t, "the end of a container", func() bool {
		return p.status(ended).State == cri.ContainerState_CONTAINER_EXITED && listing(t, "--all")[ended] == nil
	})

	t.Run("ps", func(t *testing.T) {
		rows := listing(t)
		if rows[p.id] != nil {
			t.Errorf("beside what runs there is %v", rows)
		}
		shows(t, rows[one], map[string]string{
			"Names": "default/seen/one", "Engine": "containerd/k8s.io", "Image": image, "State": "running", "Machine": strconv.Itoa(machine), "Pod": p.id,
			"Owner": strconv.Itoa(parentOf(machine)),
		})
		if status := rows[one]["Status"]; !strings.HasPrefix(status, "Up ") {
			t.Errorf("status: %s", status)
		}
		if out := m.OK(t, "ps", "--engines", "-q"); !slices.Contains(strings.Fields(out), one[:12]) {
			t.Errorf("-q: %s", out)
		}
		if out := m.OK(t, "ps", "--engines", "-a", "-q", "--no-trunc", "--filter", "name=seen/one"); strings.TrimSpace(out) != one {
			t.Errorf("a filter: %s", out)
		}
		if out := m.OK(t, "ps", "--engines"); !strings.HasPrefix(out, "CONTAINER ID ") || !strings.Contains(out, one[:12]+" ") {
			t.Errorf("the table: %s", out)
		}
		// What scripts know.
		if out := m.OK(t, "ps", "--all", "--quiet", "--no-trunc"); strings.Contains(out, one) || strings.Contains(out, p.id) {
			t.Errorf("ps without --engines: %s", out)
		}
	})
	t.Run("exec", func(t *testing.T) {
		r := m.Run(t, "exec", one[:12], "sh", "-c", "echo words; echo other >&2; exit 7")
		if r.Code != 7 || r.Out != "words\n" || r.Err != "other\n" {
			t.Errorf("got %s", r)
		}
		if r := m.Feed(t, "typed\n", "exec", "-i", "default/seen/one", "sh", "-c", "cat; id -u; pwd; echo $A"); r.Code != 0 || r.Out != "typed\n0\n/\n\n" {
			t.Errorf("with input: %s", r)
		}
		if r := m.Feed(t, "typed\n", "exec", "-u", "1234:5", "-w", "/tmp", "-e", "A=b", one, "sh", "-c", "cat; id -u; id -g; pwd; echo $A"); r.Out != "1234\n5\n/tmp\nb\n" {
			t.Errorf("without input, as another user: %s", r)
		}
		m.Fails(t, 127, "nonesuch", "exec", one, "/nonesuch")
		m.Fails(t, 1, "no such container", "exec", ended, "true")
		m.Fails(t, 1, "--privileged", "exec", "--privileged", one, "true")
		// The operator's policy holds here, too.
		config := t.TempDir()
		if err := os.WriteFile(filepath.Join(config, "policy.yaml"), []byte("version: 1\nprofile: standard\nusers: {root: false}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		held := operator(t)
		held.Env = append(slices.Clone(held.Env), "MANIS_CONFIG="+config)
		held.Fails(t, 125, "users.root (line 3)", "exec", one, "true")
		held.Fails(t, 125, "users.root (line 3)", "exec", "-u", "root", one, "true")
		held.OK(t, "exec", "-u", "1234", one, "true")
		m.OK(t, "exec", "-d", one, "sh", "-c", "echo done >/tmp/detached")
		stage.Eventually(t, "what a detached command does", func() bool {
			out, _ := p.exec(one, "cat", "/tmp/detached")
			return out == "done"
		})
	})
	t.Run("terminal", func(t *testing.T) {
		tty := m.Terminal(t, "exec", "-it", one[:12], "sh")
		tty.Type("stty size; tty\n")
		tty.Await("40 120")
		tty.Await("/dev/pts/")
		tty.Resize(30, 90)
		stage.Eventually(t, "the terminal's new size", func() bool {
			tty.Type("stty size\n")
			return strings.Contains(tty.Shown(), "30 90")
		})
		tty.Type("exit 5\n")
		if code := tty.End(); code != 5 {
			t.Errorf("exit %d: %s", code, tty.Shown())
		}
	})
	t.Run("killed", func(t *testing.T) {
		// Who goes takes the process along.
		cmd := m.Command(t.Context(), "exec", one, "sleep", "54321")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running := func() bool {
			out, _ := p.exec(one, "ps")
			return strings.Contains(out, "sleep 54321")
		}
		stage.Eventually(t, "the command", running)
		cmd.Process.Kill()
		cmd.Wait()
		stage.Eventually(t, "the end of the command", func() bool { return !running() })
	})
	t.Run("top and stats", func(t *testing.T) {
		if out := m.OK(t, "top", one); !strings.Contains(out, "sh -c trap") || !strings.HasPrefix(out, "UID") {
			t.Errorf("top: %s", out)
		}
		row := m.OK(t, "stats", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.Name}} {{.PIDs}} {{.MemUsage}} {{.HostMem}}", one[:12])
		f := strings.Fields(row)
		if len(f) != 7 || f[0] != one || f[1] != "default/seen/one" || f[3] == "0B" || strings.Contains(row, "--") || f[6] == "0B" {
			t.Errorf("stats: %s", row)
		}
		if n, err := strconv.Atoi(f[2]); err != nil || n < 1 {
			t.Errorf("stats: %s", row)
		}
		if out := m.OK(t, "stats", "--no-stream", "--engines", "--format", "{{.Name}}"); !slices.Contains(strings.Fields(out), "default/seen/one") {
			t.Errorf("stats --engines: %s", out)
		}
	})
	t.Run("inspect", func(t *testing.T) {
		const format = "{{.State.Pid}} {{.State.Status}} {{.Engine.Name}} {{.Engine.Namespace}} {{.Engine.Pod}} {{.Manis.MonitorPid}} {{.Manis.VM.memory_bytes}} {{range .Manis.Jail}}{{if .in_force}}{{.name}},{{end}}{{end}}"
		out := m.OK(t, "inspect", "--format", format, one[:12])
		want := fmt.Sprintf("%d running containerd k8s.io %s %d ", machine, p.id, parentOf(machine))
		if !strings.HasPrefix(out, want) || !strings.Contains(out, ",new privileges,") || strings.Contains(out, "<no value>") {
			t.Errorf("inspect: %s, want %s", out, want)
		}
		if out := m.OK(t, "inspect", "--type", "container", "--format", "{{.Name}} {{range .Engine.Containers}}{{.}} {{end}}", "default/seen"); !strings.Contains(out, "/default/seen ") || !strings.Contains(out, one) {
			t.Errorf("inspect of the pod: %s", out)
		}
		m.Fails(t, 1, "no such object", "inspect", "f00f00f00f00")
	})
	t.Run("logs", func(t *testing.T) {
		m.Fails(t, 1, "kubectl logs --namespace default seen --container one", "logs", one)
		// As the kubelet does.
		const links = "/var/log/containers"
		if os.Mkdir(links, 0o755) == nil {
			t.Cleanup(func() { os.Remove(links) })
		}
		talks := p.start("talks", nil, "sh", "-c", "echo first; echo second >&2; echo third; "+idle)
		link := filepath.Join(links, "seen_default_talks-"+talks+".log")
		t.Cleanup(func() { os.Remove(link) })
		if err := os.Symlink(filepath.Join(p.config.LogDirectory, "talks.log"), link); err != nil {
			t.Fatal(err)
		}
		stage.Eventually(t, "the container's output", func() bool {
			r := m.Run(t, "logs", talks[:12])
			return r.Out == "first\nthird\n" && r.Err == "second\n"
		})
		m.Prints(t, "", "logs", "--tail", "0", talks)
	})
}

// TestOperatorTrouble is the listing beside a pod whose shim hangs, and after one that was killed.
func TestOperatorTrouble(t *testing.T) {
	m := operator(t)
	p := newPod(t, "hangs", nil)
	id := p.start("one", nil, "sh", "-c", idle)
	other := newPod(t, "beside", nil)
	well := other.start("one", nil, "sh", "-c", idle)
	shim := parentOf(podMachine(t, p))
	unix.Kill(shim, unix.SIGSTOP)
	t.Cleanup(func() { unix.Kill(shim, unix.SIGCONT) })
	rows := listing(t)
	shows(t, rows[p.id], map[string]string{"Names": "default/hangs", "Engine": "containerd/k8s.io", "Status": "Not answering", "State": "unknown", "Owner": strconv.Itoa(shim)})
	shows(t, rows[well], map[string]string{"Names": "default/beside/one", "State": "running"})
	m.Fails(t, 1, "does not answer", "exec", p.id, "true")
	if out := m.OK(t, "inspect", "--format", "{{.State.Error}}", "default/hangs"); !strings.Contains(out, "does not answer") {
		t.Errorf("inspect: %s", out)
	}
	unix.Kill(shim, unix.SIGCONT)
	shows(t, listing(t)[id], map[string]string{"State": "running"})

	files, _ := filepath.Glob("/run/manis/pods/*/identity.json")
	unix.Kill(shim, unix.SIGKILL)
	stage.Eventually(t, "the end of the pod", func() bool {
		return len(listing(t, "--all")) == 1 && p.status(id).State == cri.ContainerState_CONTAINER_EXITED
	})
	// What it has left on the disk says nothing.
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(f); err != nil {
			os.WriteFile(f, []byte(`{"Engine": "containerd", "ID": "left"}`), 0o600)
			t.Cleanup(func() { os.RemoveAll(filepath.Dir(f)) })
		}
	}
	if rows := listing(t, "--all"); len(rows) != 1 || rows[well] == nil {
		t.Errorf("after the shim was killed: %v", rows)
	}
}

// TestOperatorForms is a container without a pod, and a pod by the Sandbox API.
func TestOperatorForms(t *testing.T) {
	e := ctr(t)
	e.OK(t, "run", "-d", "--runtime", runtime, image, "alone", "sh", "-c", idle)
	t.Cleanup(func() {
		e.Run(t, "task", "kill", "-s", "9", "alone")
		stage.Eventually(t, "the container's removal", func() bool {
			e.Run(t, "task", "rm", "alone")
			return e.Run(t, "container", "rm", "alone").Code == 0
		})
	})
	shows(t, listing(t)["alone"], map[string]string{"Engine": "containerd/default", "Names": "-", "State": "running", "Pod": "alone"})
	operator(t).Prints(t, "inside", "exec", "alone", "echo", "inside")
	e.OK(t, "task", "pause", "alone")
	shows(t, listing(t)["alone"], map[string]string{"State": "paused"})
	operator(t).Fails(t, 1, "is paused", "exec", "alone", "true")
	e.OK(t, "task", "resume", "alone")
	e.OK(t, "task", "kill", "-s", "9", "alone")
	stage.Eventually(t, "the container's end", func() bool { return strings.HasPrefix(listing(t, "--all")["alone"]["Status"], "Exited (137) ") })
	if rows := listing(t); rows["alone"] != nil {
		t.Errorf("what has ended is among what runs: %v", rows)
	}
	operator(t).Fails(t, 1, "not running", "exec", "alone", "true")

	p := newPodOf(t, sandboxHandler, "byapi", nil)
	shows(t, listing(t)[p.id], map[string]string{"Names": "default/byapi", "State": "running"})
	id := p.start("one", nil, "sh", "-c", idle)
	shows(t, listing(t)[id], map[string]string{"Names": "default/byapi/one", "Engine": "containerd/k8s.io", "Pod": p.id})
	operator(t).Prints(t, "byapi-host", "exec", id[:8], "hostname")
}
