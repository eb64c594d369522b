package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// engineStandIn answers as containerd does, and follows the drop-in whenever the file that stands for a restart is there.
type engineStandIn struct {
	cri.UnimplementedRuntimeServiceServer
	host    *Host
	version string
	// deaf makes it end for good at a restart that brings it a drop-in.
	deaf bool

	mu       sync.Mutex
	handles  bool
	restarts int
}

func (e *engineStandIn) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "containerd", RuntimeVersion: e.version}, nil
}

func (e *engineStandIn) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if os.Remove(e.host.Restart[1]) == nil {
		e.restarts++
		config, _ := os.ReadFile(e.host.Config)
		_, err := os.Stat(e.host.DropIn)
		e.handles = err == nil && (strings.Contains(string(config), "/manis.toml") || strings.Contains(string(config), "/*.toml"))
	}
	if e.deaf && e.handles {
		return nil, errors.New("out of order")
	}
	if strings.HasPrefix(e.version, "v1") {
		runtimes := `"runc": {}`
		if e.handles {
			runtimes += `, "manis": {}`
		}
		return &cri.StatusResponse{Info: map[string]string{"config": `{"containerd": {"runtimes": {` + runtimes + `}}}`}}, nil
	}
	r := &cri.StatusResponse{RuntimeHandlers: []*cri.RuntimeHandler{{Name: ""}, {Name: "runc"}}}
	if e.handles {
		r.RuntimeHandlers = append(r.RuntimeHandlers, &cri.RuntimeHandler{Name: e.host.Handler})
	}
	return r, nil
}

func (e *engineStandIn) restarted() int { e.mu.Lock(); defer e.mu.Unlock(); return e.restarts }

// host is this machine with everything in a directory of the test's, and a containerd of this version.
func host(t *testing.T, version string) (*Host, *engineStandIn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "node") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &Host{
		Root: "/", Prefix: dir + "/opt/manis", Config: dir + "/etc/config.toml", DropIn: dir + "/etc/conf.d/manis.toml", Socket: dir + "/c.sock",
		Handler: "manis", Restart: []string{"touch", dir + "/restart"}, Log: t.Logf,
	}
	if err := os.MkdirAll(dir+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	e := &engineStandIn{host: h, version: version}
	l, err := net.Listen("unix", h.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, e)
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return h, e
}

// release is a directory with one, whose shim sleeps.
func release(t *testing.T, mark string) string {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range Files() {
		text := []byte(mark + name)
		if name == "bin/containerd-shim-manis-v2" {
			text = append(slices.Clone(program), mark...)
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), text, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// pod runs the current shim, until the end of the test or of what is returned.
func pod(t *testing.T, h *Host) (end func()) {
	t.Helper()
	path, err := filepath.EvalSymlinks(h.Prefix + "/current/bin/containerd-shim-manis-v2")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	t.Cleanup(end)
	return end
}

func install(t *testing.T, h *Host, release, version string) string {
	t.Helper()
	name, err := h.Install(t.Context(), release, version)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func there(path string) bool { _, err := os.Lstat(path); return err == nil }

// tree is all that is below a directory.
func tree(t *testing.T, dir string) (list []string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if !strings.HasSuffix(path, "c.sock") {
			list = append(list, path)
		}
		return err
	})
	return list
}

func TestInstallAndRemove(t *testing.T) {
	for _, c := range []struct{ name, version, config, section string }{
		{"no configuration", "v2.4.2", "", "io.containerd.cri.v1.runtime"},
		{"one without imports", "v2.0.1", "version = 3\n[grpc]\n  imports = ['no']\n", "io.containerd.cri.v1.runtime"},
		{"one that imports it", "v2.2.0", "version = 3\nimports = [\n  'conf.d/*.toml',\n]\n", "io.containerd.cri.v1.runtime"},
		{"an older containerd", "v1.7.20", "version = 2\n", "io.containerd.grpc.v1.cri"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, e := host(t, c.version)
			if c.config != "" {
				if err := os.WriteFile(h.Config, []byte(c.config), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, filepath.Dir(h.Socket))
			dir := release(t, "one")
			name := install(t, h, dir, "v1.0-3-gabc")
			text, err := os.ReadFile(h.DropIn)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{c.section, ".runtimes.manis]", "runtime_path = '" + h.Prefix + "/current/bin/containerd-shim-manis-v2'"} {
				if !strings.Contains(string(text), part) {
					t.Errorf("no %q in\n%s", part, text)
				}
			}
			for _, f := range files {
				if fi, err := os.Stat(filepath.Join(h.Prefix, "current", f.name)); err != nil || fi.Mode().Perm() != f.mode {
					t.Errorf("%s: %v %v", f.name, fi, err)
				}
			}
			if again := install(t, h, dir, "v1.0-3-gabc"); again != name || e.restarted() != 1 {
				t.Errorf("installed again: %s instead of %s, %d restarts", again, name, e.restarted())
			}
			if err := h.Remove(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			after := tree(t, filepath.Dir(h.Socket))
			after = slices.DeleteFunc(after, func(p string) bool { return strings.HasSuffix(p, "/opt") })
			if !slices.Equal(before, after) {
				t.Errorf("there were %v, and then %v", before, after)
			}
			if now, _ := os.ReadFile(h.Config); string(now) != c.config {
				t.Errorf("the configuration has become %q", now)
			}
			if e.restarted() != 2 {
				t.Errorf("%d restarts", e.restarted())
			}
			if err := h.Remove(t.Context(), false); err != nil {
				t.Errorf("removed twice: %v", err)
			}
		})
	}
}

func TestUpgradeKeepsWhatRuns(t *testing.T) {
	h, e := host(t, "v2.4.2")
	first := install(t, h, release(t, "one"), "v1")
	end := pod(t, h)
	second := install(t, h, release(t, "two"), "v1")
	if first == second || e.restarted() != 1 {
		t.Fatalf("%s after %s, %d restarts", second, first, e.restarted())
	}
	s, err := h.Status(t.Context())
	if err != nil || len(s.Versions) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, v := range s.Versions {
		if v.Current != (v.Name == second) || (len(v.Processes) == 1) != (v.Name == first) {
			t.Errorf("%+v", v)
		}
	}
	third := install(t, h, release(t, "three"), "v2")
	if there(h.Prefix+"/versions/"+second) || !there(h.Prefix+"/versions/"+first) {
		t.Error("what runs has to stay, and what does not to go")
	}
	if err := h.Remove(t.Context(), false); !errors.Is(err, ErrBusy) || !there(h.DropIn) {
		t.Errorf("removed while a pod runs: %v", err)
	}
	end()
	install(t, h, release(t, "three"), "v2")
	if there(h.Prefix+"/versions/"+first) || !there(h.Prefix+"/versions/"+third) {
		t.Error("the first version stays though nothing runs from it")
	}
}

func TestRemoveWaits(t *testing.T) {
	h, _ := host(t, "v2.4.2")
	install(t, h, release(t, "one"), "v1")
	end := pod(t, h)
	waits := make(chan struct{})
	h.Log = func(format string, args ...any) {
		if strings.HasPrefix(format, "waiting") {
			close(waits)
		}
	}
	go func() { <-waits; end() }()
	if err := h.Remove(t.Context(), true); err != nil || there(h.Prefix) {
		t.Errorf("%v", err)
	}
}

// TestInterrupted leaves what a killed installation leaves.
func TestInterrupted(t *testing.T) {
	h, _ := host(t, "v2.4.2")
	dir := release(t, "one")
	name, err := Identify(dir, "v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, half := range []string{name, "older"} {
		if err := os.MkdirAll(h.Prefix+"/versions/"+newPrefix+half+"/bin", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("versions/nothing", h.Prefix+"/"+newPrefix+"current"); err != nil {
		t.Fatal(err)
	}
	install(t, h, dir, "v1")
	if list, _ := filepath.Glob(h.Prefix + "/versions/.*"); len(list) > 0 || there(h.Prefix+"/"+newPrefix+"current") {
		t.Errorf("left: %v", list)
	}
	if s, err := h.Status(t.Context()); err != nil || len(s.Versions) != 1 || !s.Handled {
		t.Errorf("%+v, %v", s, err)
	}
	if err := os.Remove(h.Prefix + "/current/lib/manis/vmlinuz"); err != nil {
		t.Fatal(err)
	}
	if s, _ := h.Status(t.Context()); !strings.Contains(strings.Join(s.Problems, " "), "lib/manis/vmlinuz is missing") {
		t.Errorf("%q", s.Problems)
	}
	install(t, h, dir, "v1")
	if s, _ := h.Status(t.Context()); strings.Contains(fmt.Sprint(s.Problems), "missing") {
		t.Errorf("not repaired: %q", s.Problems)
	}
}

func TestContainerdThatDoesNotComeBack(t *testing.T) {
	defer func(d time.Duration) { backTime = d }(backTime)
	backTime = time.Second
	h, e := host(t, "v2.4.2")
	e.deaf = true
	before := tree(t, h.Config)
	if _, err := h.Install(t.Context(), release(t, "one"), "v1"); err == nil || !strings.Contains(err.Error(), "does not answer after its restart") {
		t.Errorf("%v", err)
	}
	if there(h.DropIn) || !slices.Equal(tree(t, h.Config), before) || e.restarted() != 2 {
		t.Errorf("the drop-in stays, or containerd was not restarted: %d", e.restarted())
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Host)
		want   string
	}{
		"prefix of everything": {func(h *Host) { h.Prefix = "/" }, "directory of its own"},
		"way out":              {func(h *Host) { h.Prefix = "/opt/../etc" }, "absolute path"},
		"quote in the prefix":  {func(h *Host) { h.Prefix = "/opt/a'b" }, "absolute path"},
		"table as the handler": {func(h *Host) { h.Handler = "a]\n[b" }, "--handler"},
		"other file":           {func(h *Host) { h.DropIn = "/etc/passwd" }, "end in .toml"},
		"no containerd":        {func(h *Host) { h.Socket += ".not" }, "ask containerd"},
		"foreign imports": {func(h *Host) {
			os.WriteFile(h.Config, []byte("version = 3\nimports = ['/elsewhere/*.toml']\n"), 0o644)
		}, "add "},
		"failing restart": {func(h *Host) { h.Restart = []string{"false", "/nowhere"} }, "restart containerd: false /nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := host(t, "v2.4.2")
			c.change(h)
			if _, err := h.Install(t.Context(), release(t, "one"), "v1"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	h, _ := host(t, "v2.4.2")
	dir := release(t, "one")
	if err := os.Truncate(filepath.Join(dir, "lib/manis/initramfs"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Install(t.Context(), dir, "v1"); err == nil || !strings.Contains(err.Error(), "initramfs: the file is empty") {
		t.Errorf("%v", err)
	}
}
