package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"manis/audit/report"
	"manis/broker/facts"
	"manis/broker/rules"
	"manis/cli/filter"
	"manis/container"
	"manis/storage"
)

// bench is a manis with directories of its own.
type bench struct {
	t         *testing.T
	root, run string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run")}
	if len(b.run) > 80 {
		t.Skip("the temporary directory's name is too long for sockets: set TMPDIR")
	}
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("MANIS_CONFIG", filepath.Join(dir, "config"))
	return b
}

// do runs a command line with the given stdin.
func (b *bench) doWith(stdin string, args ...string) (out, errOut string, code int) {
	b.t.Helper()
	file := func(content string) *os.File {
		f, err := os.CreateTemp(b.t.TempDir(), "stdio")
		check(b.t, err)
		_, err = f.WriteString(content)
		check(b.t, err)
		_, err = f.Seek(0, 0)
		check(b.t, err)
		return f
	}
	a := &app{in: file(stdin), out: file(""), err: file(""), root: b.root, runRoot: b.run, evidence: &Evidence{
		Rules:  func(file []byte) (facts.Rules, error) { return rules.Parse(file) },
		Report: report.Write,
	}}
	defer a.in.Close()
	defer a.out.Close()
	defer a.err.Close()
	// The flags' defaults would undo the fields above.
	code = a.run(context.Background(), append(args[:1:1], append([]string{"--root", b.root, "--run-root", b.run}, args[1:]...)...))
	read := func(f *os.File) string {
		content, err := os.ReadFile(f.Name())
		check(b.t, err)
		return string(content)
	}
	return read(a.out), read(a.err), code
}

func (b *bench) do(args ...string) (out, errOut string, code int) {
	b.t.Helper()
	return b.doWith("", args...)
}

// ok is do for what must succeed.
func (b *bench) ok(args ...string) string {
	b.t.Helper()
	out, errOut, code := b.do(args...)
	if code != 0 {
		b.t.Fatalf("manis %s: exit code %d: %s", strings.Join(args, " "), code, errOut)
	}
	return out
}

// fails is do for what must fail, with something in its error.
func (b *bench) fails(code int, want string, args ...string) {
	b.t.Helper()
	_, errOut, got := b.do(args...)
	if got != code || !strings.Contains(errOut, want) {
		b.t.Errorf("manis %s: exit code %d, want %d; error %q, want it to say %q", strings.Join(args, " "), got, code, errOut, want)
	}
}

func (b *bench) store() *container.Store {
	b.t.Helper()
	s, err := container.Open(filepath.Join(b.root, "containers"), b.run)
	check(b.t, err)
	return s
}

// made puts a container into the store that nobody started.
func (b *bench) made(name string, change func(*container.Config, *container.State)) *container.Container {
	b.t.Helper()
	cfg := &container.Config{
		Name: name, Created: time.Now().UTC(), Image: "busybox", ImageID: "sha256:" + strings.Repeat("ab", 32), Platform: "linux/amd64",
		Process: container.Process{Args: []string{"sh", "-c", "a rather long command line"}},
		Network: container.Network{Mode: "user"}, Log: container.Log{Driver: "json-file"},
		Restart: container.Restart{Policy: "no"}, StopTimeout: 10 * time.Second,
	}
	st := &container.State{Status: container.Created}
	if change != nil {
		change(cfg, st)
	}
	c, err := b.store().Create(cfg)
	check(b.t, err)
	check(b.t, c.SetState(st))
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exited(code int) func(*container.Config, *container.State) {
	return func(_ *container.Config, st *container.State) {
		st.Status, st.ExitCode, st.FinishedAt = container.Exited, code, time.Now().Add(-time.Minute)
	}
}

func TestEveryCommandIsComplete(t *testing.T) {
	root := new(app).tree(nil)
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.RunE == nil || cmd.Args == nil {
			t.Errorf("%s: lacks a description, a body or a check of its arguments", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	for _, cmd := range root.Commands() {
		walk(cmd)
	}
	want := strings.Fields(`run create start stop kill restart rm rename ps logs exec attach inspect wait cp top stats
		pause unpause update port images pull rmi load save tag history prune volume doctor version completion info
		container image system`)
	for _, name := range want {
		if cmd, _, err := root.Find([]string{name}); err != nil || cmd == root {
			t.Errorf("no command %s", name)
		}
	}
}

func TestCommandsAreBuiltWhenNeeded(t *testing.T) {
	if n := len(new(app).tree([]string{"ps"}).Commands()); n != 1 {
		t.Errorf("ps builds %d commands", n)
	}
	for _, args := range [][]string{nil, {"nope"}, {"--root", "/x", "ps"}, {"help", "ps"}} {
		if n := len(new(app).tree(args).Commands()); n < 30 {
			t.Errorf("%v builds %d commands only", args, n)
		}
	}
}

func TestMistakes(t *testing.T) {
	b := newBench(t)
	tests := []struct {
		code int
		want string
		args []string
	}{
		{1, "unknown command: manis nope", []string{"nope"}},
		{1, "did you mean run", []string{"rnu"}},
		{1, "unknown command: manis container nope", []string{"container", "nope"}},
		{125, "unknown flag: --nope", []string{"ps", "--nope"}},
		{125, "unknown flag: --nope", []string{"run", "--nope", "x"}},
		{125, "unknown shorthand flag: 'Z'", []string{"run", "-Z", "x"}},
		{125, "'manis run' requires at least 1 argument", []string{"run"}},
		{1, "'manis rm' requires at least 1 argument", []string{"rm"}},
		{1, "'manis tag' requires 2 arguments", []string{"tag", "a"}},
		{1, "'manis images' requires at most 1 argument", []string{"images", "a", "b"}},
		{1, "'manis ps' accepts no arguments", []string{"ps", "x"}},
		{125, "flag needs an argument", []string{"run", "--name"}},
		{125, `invalid argument "x" for "-m, --memory" flag`, []string{"run", "-m", "x", "busybox"}},
		{125, "invalid restart policy", []string{"run", "--restart", "x", "busybox"}},
		{125, "invalid detach keys", []string{"run", "--detach-keys", "xyz", "busybox"}},
		{125, "cannot specify both --attach and --detach", []string{"run", "-d", "-a", "stdout", "busybox"}},
		{125, "stdin is not a terminal", []string{"run", "-it", "busybox"}},
		{125, "valid streams are", []string{"run", "-a", "nope", "busybox"}},
		{125, "no such image: nosuch", []string{"run", "--pull", "never", "nosuch"}},
		{125, "invalid", []string{"run", "--pull", "never", "UPPER CASE"}},
		{1, "no such container: nosuch", []string{"rm", "nosuch"}},
		{1, "no such container: nosuch", []string{"start", "nosuch"}},
		{1, "no such container: nosuch", []string{"stop", "nosuch"}},
		{1, "no such container: nosuch", []string{"logs", "nosuch"}},
		{1, "no such container: nosuch", []string{"exec", "nosuch", "ls"}},
		{1, "no such container: nosuch", []string{"wait", "nosuch"}},
		{1, "no such container: nosuch", []string{"cp", "nosuch:/x", "/tmp"}},
		{1, "no such object: nosuch", []string{"inspect", "nosuch"}},
		{1, "no such volume: nosuch", []string{"inspect", "--type", "volume", "nosuch"}},
		{1, "unknown type", []string{"inspect", "--type", "nope", "x"}},
		{1, "invalid filter", []string{"ps", "-f", "nope=1"}},
		{1, "invalid filter", []string{"ps", "-f", "status=nope"}},
		{1, "invalid filter", []string{"ps", "-f", "exited=x"}},
		{1, "invalid filter", []string{"images", "-f", "nope=1"}},
		{1, "template", []string{"ps", "--format", "{{"}},
		{1, "invalid signal", []string{"kill", "-s", "NOPE", "x"}},
		{1, "you must provide one or more flags", []string{"update", "x"}},
		{1, "unknown shell", []string{"completion", "csh"}},
		{1, "copying between containers", []string{"cp", "a:/x", "b:/x"}},
		{1, "at least one container", []string{"cp", "/x", "/y"}},
		{1, "--vcpus is about the launch digest of SEV-SNP: it needs --snp", []string{"trust", "measure", "--vcpus", "2"}},
		{1, "--snp needs --ovmf", []string{"trust", "measure", "--snp"}},
		{1, "--snp needs --vcpus", []string{"trust", "measure", "--snp", "--ovmf", "x"}},
		{1, "either --vcpu-type or --vcpu-sig", []string{"trust", "measure", "--snp", "--ovmf", "x", "--vcpus", "2"}},
		{1, "either --vcpu-type or --vcpu-sig", []string{"trust", "measure", "--snp", "--ovmf", "x", "--vcpus", "2", "--vcpu-type", "EPYC", "--vcpu-sig", "1"}},
		{1, "take one of EPYC, EPYC-IBPB", []string{"trust", "measure", "--snp", "--ovmf", "x", "--vcpus", "2", "--vcpu-type", "host"}},
		{1, "expected BOOTLOADER,TEE,SNP,MICROCODE", []string{"trust", "measure", "--snp", "--ovmf", "x", "--vcpus", "2", "--vcpu-sig", "0xa00f11", "--min-tcb", "1,2"}},
		{1, `"256" is no number of 0 to 255`, []string{"trust", "measure", "--snp", "--ovmf", "x", "--vcpus", "2", "--vcpu-sig", "0xa00f11", "--min-tcb", "1,2,3,256"}},
		{1, "invalid value for --since", []string{"logs", "--since", "nope", "x"}},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			b.t = t
			b.fails(tt.code, tt.want, tt.args...)
		})
	}
}

func TestHelp(t *testing.T) {
	b := newBench(t)
	for _, args := range [][]string{{"run", "--help"}, {"help", "run"}} {
		out := b.ok(args...)
		if !strings.HasPrefix(out, "Usage:  manis run [OPTIONS] IMAGE [COMMAND] [ARG...]\n") || !strings.Contains(out, "-h, --hostname") {
			t.Errorf("%v: got %q", args, out)
		}
	}
	out := b.ok("help")
	for _, want := range []string{"Common Commands:", "Management Commands:", "\nCommands:"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the help", want)
		}
	}
	if strings.Contains(out, "docs") {
		t.Error("the help shows a hidden command")
	}
}

func TestPs(t *testing.T) {
	b := newBench(t)
	if out := b.ok("ps"); !strings.HasPrefix(out, "CONTAINER ID   IMAGE") || strings.Count(out, "\n") != 1 {
		t.Errorf("without containers: %q", out)
	}
	one := b.made("one", exited(0))
	two := b.made("two", exited(3))
	three := b.made("three", func(cfg *container.Config, _ *container.State) {
		cfg.Labels = map[string]string{"tier": "db"}
		cfg.Mounts = []container.Mount{{Type: "volume", Source: "data", Destination: "/data"}}
	})
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"only running", []string{"ps", "-q"}, ""},
		{"all", []string{"ps", "-a", "--format", "{{.Names}}"}, "three\ntwo\none\n"},
		{"quiet", []string{"ps", "-aq"}, three.ID[:12] + "\n" + two.ID[:12] + "\n" + one.ID[:12] + "\n"},
		{"whole", []string{"ps", "-q", "--no-trunc", "-l"}, three.ID + "\n"},
		{"last", []string{"ps", "-n", "2", "--format", "{{.Names}}"}, "three\ntwo\n"},
		{"status", []string{"ps", "-f", "status=exited", "--format", "{{.Names}} {{.Status}}"}, "two Exited (3) About a minute ago\none Exited (0) About a minute ago\n"},
		{"exit code", []string{"ps", "-a", "-f", "exited=3", "--format", "{{.Names}}"}, "two\n"},
		{"name", []string{"ps", "-a", "-f", "name=^t", "--format", "{{.Names}}"}, "three\ntwo\n"},
		{"names", []string{"ps", "-a", "-f", "name=one", "-f", "name=two", "--format", "{{.Names}}"}, "two\none\n"},
		{"id", []string{"ps", "-a", "-f", "id=" + two.ID[:10], "--format", "{{.Names}}"}, "two\n"},
		{"label", []string{"ps", "-a", "-f", "label=tier=db", "--format", `{{.Names}} {{.Label "tier"}} {{.Labels}}`}, "three db tier=db\n"},
		{"no label", []string{"ps", "-a", "-f", "label!=tier", "--format", "{{.Names}}"}, "two\none\n"},
		{"volume", []string{"ps", "-a", "-f", "volume=data", "--format", "{{.Names}} {{.Mounts}} {{.LocalVolumes}}"}, "three data 1\n"},
		{"before", []string{"ps", "-a", "-f", "before=two", "--format", "{{.Names}}"}, "one\n"},
		{"since", []string{"ps", "-a", "-f", "since=one", "--format", "{{.Names}}"}, "three\ntwo\n"},
		{"ancestor", []string{"ps", "-a", "-f", "ancestor=busybox:latest", "-f", "status=created", "--format", "{{.Names}}"}, "three\n"},
		{"no ancestor", []string{"ps", "-a", "-f", "ancestor=alpine", "-q"}, ""},
		{"network", []string{"ps", "-a", "-f", "network=none", "-q"}, ""},
		{"docker's alias", []string{"container", "ls", "-a", "--format", "{{.Names}}"}, "three\ntwo\none\n"},
		{"command", []string{"ps", "-l", "--format", "{{.Command}} {{.Image}} {{.State}} {{.Networks}}"}, "\"sh -c a rather long…\" busybox created user\n"},
		{"whole command", []string{"ps", "-l", "--no-trunc", "--format", "{{.Command}}"}, "\"sh -c a rather long command line\"\n"},
		{"json", []string{"ps", "-l", "--format", `{{json .Names}}`}, "\"three\"\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			if got := b.ok(tt.args...); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	var row map[string]string
	if err := json.Unmarshal([]byte(b.ok("ps", "-l", "--format", "json")), &row); err != nil || row["Names"] != "three" || row["ID"] != three.ID[:12] {
		t.Errorf("json: %v, %v", row, err)
	}
}

func TestStatusText(t *testing.T) {
	now := time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC)
	hour := now.Add(-time.Hour)
	tests := []struct {
		st   container.State
		want string
	}{
		{container.State{Status: container.Created}, "Created"},
		{container.State{Status: container.Running, StartedAt: hour}, "Up About an hour"},
		{container.State{Status: container.Paused, StartedAt: hour}, "Up About an hour (Paused)"},
		{container.State{Status: container.Running, StartedAt: hour, Health: &container.HealthState{Status: "starting"}}, "Up About an hour (health: starting)"},
		{container.State{Status: container.Running, StartedAt: hour, Health: &container.HealthState{Status: "healthy"}}, "Up About an hour (healthy)"},
		{container.State{Status: container.Exited, ExitCode: 2, FinishedAt: hour}, "Exited (2) About an hour ago"},
		{container.State{Status: container.Restarting, ExitCode: 1, FinishedAt: hour}, "Restarting (1) About an hour ago"},
		{container.State{Status: container.Dead}, "Dead"},
	}
	for _, tt := range tests {
		if got := statusText(&tt.st, now); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.st.Status, got, tt.want)
		}
	}
}

func TestPortList(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	tests := []struct {
		name  string
		ports []container.Port
		want  string
	}{
		{"none", nil, ""},
		{"one", []container.Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}, "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"},
		{"of one address", []container.Port{{HostIP: local, HostPort: 53, ContainerPort: 53, Protocol: "udp"}}, "127.0.0.1:53->53/udp"},
		{"neighbours", []container.Port{
			{HostIP: local, HostPort: 9001, ContainerPort: 81, Protocol: "tcp"},
			{HostIP: local, HostPort: 9000, ContainerPort: 80, Protocol: "tcp"},
			{HostIP: local, HostPort: 9002, ContainerPort: 82, Protocol: "tcp"},
		}, "127.0.0.1:9000-9002->80-82/tcp"},
		{"not neighbours", []container.Port{
			{HostIP: local, HostPort: 9000, ContainerPort: 80, Protocol: "tcp"},
			{HostIP: local, HostPort: 9005, ContainerPort: 81, Protocol: "tcp"},
			{HostIP: local, HostPort: 9001, ContainerPort: 81, Protocol: "udp"},
		}, "127.0.0.1:9000->80/tcp, 127.0.0.1:9005->81/tcp, 127.0.0.1:9001->81/udp"},
	}
	for _, tt := range tests {
		if got := portList(tt.ports); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	published := []container.Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
	for value, want := range map[string]bool{"8080": true, "8080/tcp": true, "8080/udp": false, "8000-9000": true, "80": false} {
		if got := portFilter(value, published, true); got != want {
			t.Errorf("publish=%s: got %v", value, got)
		}
	}
}

func TestInspectContainer(t *testing.T) {
	b := newBench(t)
	c := b.made("web", func(cfg *container.Config, st *container.State) {
		cfg.Network.Ports = []container.Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
		cfg.Mounts = []container.Mount{
			{Type: "bind", Source: "/srv", Destination: "/srv", ReadOnly: true},
			{Type: "volume", Source: "data", Destination: "/data"},
			{Type: "tmpfs", Destination: "/tmp", Options: []string{"size=1"}},
		}
		cfg.Resources.MemoryBytes, cfg.Resources.MilliCPUs = 256<<20, 1500
		st.Status, st.ExitCode, st.FinishedAt = container.Exited, 4, time.Now()
		st.Ports = []container.Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
		st.VM = []byte(`{"driver":"qemu","jail":[{"name":"no new privileges","in_force":true}]}`)
	})
	tests := []struct{ format, want string }{
		{"{{.Id}}", c.ID},
		{"{{.Name}}", "/web"},
		{"{{.Path}} {{join .Args \",\"}}", "sh -c,a rather long command line"},
		{"{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}", "exited false 4"},
		{"{{.Config.Image}} {{.Image}}", "busybox sha256:" + strings.Repeat("ab", 32)},
		{"{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.NetworkMode}}", "268435456 1500000000 user"},
		{"{{.HostConfig.RestartPolicy.Name}}", "no"},
		{"{{json .HostConfig.Binds}}", `["/srv:/srv:ro","data:/data"]`},
		{"{{json .HostConfig.PortBindings}}", `{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}`},
		{`{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`, "8080"},
		{"{{range .Mounts}}{{.Type}}:{{.Destination}}:{{.RW}} {{end}}", "bind:/srv:false volume:/data:true tmpfs:/tmp:true "},
		{"{{len .Mounts}} {{.RestartCount}}", "3 0"},
		{"{{range .Manis.Jail}}{{.Name}}{{end}}", "no new privileges"},
		{"{{.Manis.VM.driver}}", "qemu"},
		{"{{.Config.StopTimeout}}", "10"},
		{"{{.State.Health}}", "<nil>"},
	}
	for _, tt := range tests {
		if got := b.ok("inspect", "-f", tt.format, "web"); got != tt.want+"\n" {
			t.Errorf("%s: got %q, want %q", tt.format, got, tt.want)
		}
	}
	var list []map[string]any
	check(t, json.Unmarshal([]byte(b.ok("inspect", c.ID[:12])), &list))
	for _, key := range strings.Fields("Id Created Path Args State Image LogPath Name RestartCount HostConfig Mounts Config NetworkSettings Manis") {
		if _, ok := list[0][key]; !ok {
			t.Errorf("no %s", key)
		}
	}
	out, errOut, code := b.do("inspect", "web", "nosuch")
	if code != 1 || !strings.Contains(out, c.ID) || !strings.Contains(errOut, "nosuch") {
		t.Errorf("one of two: exit code %d, %q", code, errOut)
	}
}

func TestRename(t *testing.T) {
	b := newBench(t)
	b.made("one", nil)
	b.made("two", nil)
	b.ok("rename", "one", "uno")
	b.fails(1, "in use", "rename", "uno", "two")
	b.fails(1, "same name", "rename", "uno", "uno")
	b.fails(1, "only [a-zA-Z0-9]", "rename", "uno", "no good")
	b.fails(1, "no such container", "rename", "one", "x")
}

func TestUpdate(t *testing.T) {
	b := newBench(t)
	b.made("one", nil)
	b.made("gone", func(cfg *container.Config, _ *container.State) { cfg.AutoRemove = true })
	if out := b.ok("update", "--restart", "on-failure:3", "one"); out != "one\n" {
		t.Errorf("got %q", out)
	}
	if got := b.ok("inspect", "-f", "{{.HostConfig.RestartPolicy}}", "one"); got != "{on-failure 3}\n" {
		t.Errorf("got %q", got)
	}
	b.fails(1, "AutoRemove", "update", "--restart", "always", "gone")
}

func TestRemove(t *testing.T) {
	b := newBench(t)
	b.made("one", exited(0))
	c := b.made("two", nil)
	if out := b.ok("rm", "one", c.ID[:8]); out != "one\n"+c.ID[:8]+"\n" {
		t.Errorf("got %q", out)
	}
	b.fails(1, "no such container: one", "rm", "one")
	if _, errOut, code := b.do("rm", "-f", "one"); code != 0 || !strings.Contains(errOut, "no such container: one") {
		t.Errorf("by force: %d, %q", code, errOut)
	}
	if out := b.ok("ps", "-aq"); out != "" {
		t.Errorf("left: %q", out)
	}
	entries, _ := os.ReadDir(filepath.Join(b.root, "containers"))
	if len(entries) > 1 { // the store's lock
		t.Errorf("left: %v", entries)
	}
}

func TestRemoveRunning(t *testing.T) {
	b := newBench(t)
	c := b.made("one", func(_ *container.Config, st *container.State) { st.Status = container.Running })
	lock, err := c.Lock() // as its monitor does
	check(t, err)
	b.fails(1, "container is running: stop the container", "rm", "one")
	lock.Close()
	// Its monitor is gone: the container is dead, and can go.
	b.ok("rm", "one")
}

// TestRemoveTwice holds that of several who remove a container at once, one does.
func TestRemoveTwice(t *testing.T) {
	b := newBench(t)
	for range 10 {
		c := b.made("one", exited(0))
		const rivals = 4
		results := make([]error, rivals)
		var wg sync.WaitGroup
		for i := range rivals {
			wg.Go(func() {
				a := &app{root: b.root, runRoot: b.run}
				results[i] = a.remove(context.Background(), c, removal{})
			})
		}
		wg.Wait()
		won := 0
		for _, err := range results {
			if err == nil {
				won++
			}
		}
		if won != 1 {
			t.Fatalf("%d of %d removed the container: %v", won, rivals, results)
		}
	}
}

func TestSweepRemovesTheDead(t *testing.T) {
	b := newBench(t)
	b.made("dead", func(cfg *container.Config, st *container.State) {
		cfg.AutoRemove = true
		st.Status = container.Running // but nobody monitors it
	})
	remove := func(cfg *container.Config, _ *container.State) { cfg.AutoRemove = true }
	b.made("waiting", remove)
	// Killed while its machine booted: the state still says created.
	check(t, os.MkdirAll(b.made("unborn", remove).RunDir(), 0o700))
	booting := b.made("booting", remove)
	lock, err := booting.Lock()
	check(t, err)
	defer lock.Close()
	check(t, os.MkdirAll(booting.RunDir(), 0o700))
	// Its files are being copied, or were by a monitor that was killed: no sign of an end.
	copied := b.made("copied", remove)
	check(t, os.MkdirAll(copied.CopyDir(), 0o700))
	copying := b.made("copying", remove)
	check(t, os.MkdirAll(copying.CopyDir(), 0o700))
	lock, err = copying.LockForCopy()
	check(t, err)
	defer lock.Close()
	if out := b.ok("ps", "-a", "--format", "{{.Names}}"); out != "copying\ncopied\nbooting\nwaiting\n" {
		t.Errorf("got %q", out)
	}
	if _, err := os.Stat(copied.CopyDir()); err == nil {
		t.Error("what a killed copy has left is still there")
	}
	if _, err := os.Stat(copying.CopyDir()); err != nil {
		t.Error(err)
	}
}

func TestPruneContainers(t *testing.T) {
	b := newBench(t)
	b.made("old", func(cfg *container.Config, _ *container.State) {
		cfg.Created = time.Now().Add(-48 * time.Hour)
		cfg.Labels = map[string]string{"keep": ""}
	})
	b.made("new", exited(0))
	if out, _, _ := b.doWith("n\n", "container", "prune"); !strings.Contains(out, "Are you sure") {
		t.Errorf("asked %q", out)
	}
	if out := b.ok("container", "prune", "-f", "--filter", "until=24h", "--filter", "label!=keep"); strings.Contains(out, "Deleted") {
		t.Errorf("removed what the filter keeps: %q", out)
	}
	out, _, _ := b.doWith("y\n", "container", "prune", "--filter", "until=24h")
	if !strings.Contains(out, "Deleted Containers:") || !strings.Contains(out, "Total reclaimed space:") {
		t.Errorf("got %q", out)
	}
	if out := b.ok("ps", "-a", "--format", "{{.Names}}"); out != "new\n" {
		t.Errorf("left %q", out)
	}
	b.ok("prune", "-f")
	if out := b.ok("ps", "-aq"); out != "" {
		t.Errorf("left %q", out)
	}
}

func TestVolumes(t *testing.T) {
	b := newBench(t)
	if out := b.ok("volume", "create", "--label", "a=b", "data"); out != "data\n" {
		t.Errorf("got %q", out)
	}
	b.ok("volume", "create", "data") // again: docker does not mind
	anonymous := strings.TrimSpace(b.ok("volume", "create"))
	if len(anonymous) != 64 {
		t.Errorf("anonymous volume %q", anonymous)
	}
	if out := b.ok("volume", "ls", "-f", "name=data", "--format", `{{.Driver}} {{.Name}} {{.Label "a"}}`); out != "local data b\n" {
		t.Errorf("got %q", out)
	}
	if out := b.ok("volume", "inspect", "-f", "{{.Name}} {{.Driver}} {{json .Labels}}", "data"); out != "data local {\"a\":\"b\"}\n" {
		t.Errorf("got %q", out)
	}
	if out := b.ok("inspect", "-f", "{{.Name}}", "data"); out != "data\n" {
		t.Errorf("got %q", out)
	}
	c := b.made("user", nil)
	ctx := context.Background()
	volumes, err := storage.OpenVolumes(ctx, filepath.Join(b.root, "volumes"))
	check(t, err)
	check(t, volumes.AddUser(ctx, "data", c.ID))
	b.fails(1, "in use", "volume", "rm", "data")
	if out := b.ok("volume", "ls", "-q", "-f", "dangling=true"); out != anonymous+"\n" {
		t.Errorf("dangling: %q", out)
	}
	if out := b.ok("volume", "prune", "-f"); !strings.Contains(out, anonymous) {
		t.Errorf("pruned %q", out)
	}
	// A user that is gone, however, holds nothing.
	check(t, volumes.AddUser(ctx, "data", strings.Repeat("f", 64)))
	b.ok("rm", "user")
	check(t, volumes.RemoveUser(ctx, "data", c.ID))
	b.ok("volume", "rm", "data")
	b.fails(1, "no such volume", "volume", "rm", "data")
	b.ok("volume", "rm", "-f", "data")
}

func TestLogs(t *testing.T) {
	b := newBench(t)
	c := b.made("one", exited(0))
	dir := filepath.Join(c.Dir(), "log")
	check(t, os.MkdirAll(dir, 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "container.log"), []byte(
		`{"log":"out 1\n","stream":"stdout","time":"2024-01-01T00:00:01Z"}
{"log":"err 2\n","stream":"stderr","time":"2024-01-01T00:00:02.5Z"}
{"log":"out 3","stream":"stdout","time":"2024-01-01T00:00:03Z"}
`), 0o600))
	tests := []struct {
		args     []string
		out, err string
	}{
		{[]string{"logs", "one"}, "out 1\nout 3", "err 2\n"},
		{[]string{"logs", "-n", "1", "one"}, "out 3", ""},
		{[]string{"logs", "-t", "--tail", "2", "one"}, "2024-01-01T00:00:03.000000000Z out 3", "2024-01-01T00:00:02.500000000Z err 2\n"},
		{[]string{"logs", "--since", "2024-01-01T00:00:03Z", "one"}, "out 3", ""},
		{[]string{"logs", "--until", "2024-01-01T00:00:01Z", "one"}, "out 1\n", ""},
		{[]string{"logs", "-f", "one"}, "out 1\nout 3", "err 2\n"}, // it has ended
		{[]string{"logs", "--tail", "nonsense", "one"}, "out 1\nout 3", "err 2\n"},
	}
	for _, tt := range tests {
		out, errOut, code := b.do(tt.args...)
		if out != tt.out || errOut != tt.err || code != 0 {
			t.Errorf("%v: got %q, %q, %d", tt.args, out, errOut, code)
		}
	}
	b.made("silent", func(cfg *container.Config, _ *container.State) { cfg.Log.Driver = "none" })
	b.fails(1, "does not support reading", "logs", "silent")
}

func TestNotRunning(t *testing.T) {
	b := newBench(t)
	b.made("one", exited(3))
	for _, args := range [][]string{{"exec", "one", "ls"}, {"kill", "one"}, {"pause", "one"}, {"unpause", "one"}, {"top", "one"}} {
		b.fails(1, "not running", args...)
	}
	b.fails(1, "cannot attach to a stopped container", "attach", "one")
	if out := b.ok("wait", "one"); out != "3\n" {
		t.Errorf("wait: %q", out)
	}
	if out := b.ok("stop", "one"); out != "one\n" {
		t.Errorf("stop: %q", out)
	}
}

func TestPort(t *testing.T) {
	b := newBench(t)
	b.made("one", func(_ *container.Config, st *container.State) {
		st.Status = container.Exited
		st.Ports = []container.Port{
			{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
			{HostIP: netip.MustParseAddr("::1"), HostPort: 53, ContainerPort: 53, Protocol: "udp"},
		}
	})
	if out := b.ok("port", "one"); out != "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n53/udp -> [::1]:53\n" {
		t.Errorf("got %q", out)
	}
	if out := b.ok("port", "one", "53/udp"); out != "[::1]:53\n" {
		t.Errorf("got %q", out)
	}
	b.fails(1, "no public port '81/tcp'", "port", "one", "81")
}

func TestCopyPaths(t *testing.T) {
	for arg, want := range map[string][2]string{
		"web:/etc":   {"web", "/etc"},
		"web:etc":    {"web", "etc"},
		"/a:b":       {"", "/a:b"},
		"./web:/etc": {"", "./web:/etc"},
		"a/b:c":      {"", "a/b:c"},
		"file":       {"", "file"},
		"-":          {"", "-"},
		"web:":       {"web", ""},
	} {
		if name, file := splitCopy(arg); name != want[0] || file != want[1] {
			t.Errorf("%s: got %q, %q", arg, name, file)
		}
	}
}

// TestCopyTarget goes through docker's table of what a copy to the host makes.
func TestCopyTarget(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	tests := []struct {
		name            string
		srcDir, content bool
		dst             string
		wantDir, want   string // "" is an error
	}{
		{"file to nothing", false, false, "new", ".", "new"},
		{"file to missing directory", false, false, "new/", "", ""},
		{"file below nothing", false, false, "no/new", "", ""},
		{"file to file", false, false, "file", ".", "file"},
		{"file to file as directory", false, false, "file/", "", ""},
		{"file to directory", false, false, "dir", "dir", "src"},
		{"file to directory/", false, false, "dir/", "dir", "src"},
		{"directory to nothing", true, false, "new", ".", "new"},
		{"directory to nothing/", true, false, "new/", ".", "new"},
		{"directory to file", true, false, "file", "", ""},
		{"directory to directory", true, false, "dir", "dir", "src"},
		{"content to directory", true, true, "dir", "dir", "."},
		{"content to nothing", true, true, "new", ".", "new"},
		{"content to file", true, true, "file", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			suffix := ""
			if strings.HasSuffix(tt.dst, "/") {
				suffix = "/"
			}
			d, base, err := target(tt.srcDir, tt.content, "src", filepath.Join(dir, tt.dst)+suffix)
			if tt.want == "" {
				if err == nil {
					t.Errorf("no error, but %s, %s", d, base)
				}
				return
			}
			check(t, err)
			if filepath.Clean(d) != filepath.Join(dir, tt.wantDir) || base != tt.want {
				t.Errorf("got %s, %s", d, base)
			}
		})
	}
}

func TestReferenceFilter(t *testing.T) {
	tests := []struct {
		pattern, name string
		want          bool
	}{
		{"busybox", "busybox:latest", true},
		{"busybox:latest", "busybox:latest", true},
		{"busy*", "busybox:1.36", true},
		{"*:1.36", "busybox:1.36", true},
		{"docker.io/library/busybox", "busybox:1", true},
		{"alpine", "busybox:1", false},
		{"localhost:5000/*", "localhost:5000/x:1", true},
		{"*", "a/b:1", false}, // a pattern does not cross slashes
	}
	for _, tt := range tests {
		if got := referenceMatches(filter.Set{"reference": {tt.pattern}}, tt.name); got != tt.want {
			t.Errorf("%s, %s: got %v", tt.pattern, tt.name, got)
		}
	}
	for name, want := range map[string][2]string{
		"a:1": {"a", "1"}, "localhost:5000/a": {"localhost:5000/a", "<none>"}, "localhost:5000/a:b": {"localhost:5000/a", "b"},
	} {
		if repo, tag := splitTag(name); repo != want[0] || tag != want[1] {
			t.Errorf("%s: got %s, %s", name, repo, tag)
		}
	}
	for ref, want := range map[string]string{
		"a": "a:latest", "a:1": "a:1", "localhost:5000/a": "localhost:5000/a:latest", "a@sha256:x": "a@sha256:x",
	} {
		if got := tagged(ref); got != want {
			t.Errorf("%s: got %s", ref, got)
		}
	}
}

func TestCompletion(t *testing.T) {
	b := newBench(t)
	b.made("web", exited(0))
	b.made("database", nil)
	b.ok("volume", "create", "data")
	for _, tt := range []struct{ line, want string }{
		{"rm ", "web database"}, {"rm web ", "database"}, {"start ", "web database"}, {"stop ", ""},
		{"volume rm ", "data"}, {"run --accel ", "auto kvm tcg"}, {"inspect --type volume ", "data"},
	} {
		args := append([]string{"__complete", "--root", b.root, "--run-root", b.run}, strings.Split(tt.line, " ")...)
		a := &app{}
		out, err := os.CreateTemp(t.TempDir(), "out")
		check(t, err)
		a.in, a.out, a.err = os.Stdin, out, out
		root := a.tree(args)
		root.SetArgs(args)
		root.SetOut(out)
		root.SetErr(&strings.Builder{})
		check(t, root.Execute())
		content, err := os.ReadFile(out.Name())
		check(t, err)
		var names []string
		for line := range strings.Lines(string(content)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, ":") {
				names = append(names, line)
			}
		}
		slices.Sort(names)
		want := strings.Fields(tt.want)
		slices.Sort(want)
		if !slices.Equal(names, want) {
			t.Errorf("%q: got %v, want %v", tt.line, names, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := b.ok("completion", shell); !strings.Contains(out, "manis") {
			t.Errorf("%s: %q", shell, out)
		}
	}
}

func TestReference(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	b.ok("docs", dir)
	content, err := os.ReadFile(filepath.Join(dir, "CLI.md"))
	check(t, err)
	for _, e := range commands() {
		want := fmt.Sprintf("\n## manis %s\n", e.name)
		if got := strings.Contains(string(content), want); got != (e.group != "") {
			t.Errorf("%s: in the reference %v", e.name, got)
		}
	}
	for _, flag := range []string{"--allow-host-loopback", "--health-start-interval", "--no-trunc"} {
		if !strings.Contains(string(content), flag) {
			t.Errorf("no %s in the reference", flag)
		}
	}
}

// TestReferenceIsCurrent holds that docs/CLI.md is of these commands.
func TestReferenceIsCurrent(t *testing.T) {
	var want strings.Builder
	new(app).reference(&want)
	got, err := os.ReadFile("../docs/CLI.md")
	check(t, err)
	if string(got) != want.String() {
		t.Error("docs/CLI.md is not of these commands: make docs writes it anew")
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[31mb\nc\u0085ä"); got != "a?[31mb?c?ä" {
		t.Errorf("got %q", got)
	}
}

func TestSystem(t *testing.T) {
	b := newBench(t)
	b.made("one", exited(0))
	if out := b.ok("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"); out != "Images 0 0\nContainers 1 0\nLocal Volumes 0 0\nSnapshots 0 0\n" {
		t.Errorf("df: %q", out)
	}
	b.ok("system", "df", "-v")
	if out := b.ok("info", "-f", "{{.Containers}} {{.ContainersStopped}} {{.ManisRootDir}}"); out != "1 1 "+b.root+"\n" {
		t.Errorf("info: %q", out)
	}
	if out := b.ok("version", "-f", "{{.Client.Os}}"); out != "linux\n" {
		t.Errorf("version: %q", out)
	}
	if out := b.ok("version"); !strings.Contains(out, "Go version:") {
		t.Errorf("version: %q", out)
	}
}
