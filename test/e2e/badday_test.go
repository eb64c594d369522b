package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// smallDisk is a tmpfs of some pages.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("no tmpfs to be had here: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// fillDisk leaves no room on a disk.
func fillDisk(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}

// The disk of --root is full or read-only: create says so and leaves nothing, and what was made before can be ended and
// deleted all the same.
func TestBundleBadDisk(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", "sleep 1000", nil)
	readOnly := func(flags uintptr) func(*testing.T, string) {
		return func(t *testing.T, disk string) {
			if err := unix.Mount("", disk, "", unix.MS_REMOUNT|flags, "size=64k"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, words string
		spoil, mend func(*testing.T, string)
	}{
		{"full", "no space left on device", fillDisk, func(t *testing.T, disk string) { os.Remove(filepath.Join(disk, "fill")) }},
		{"read-only", "read-only file system", readOnly(unix.MS_RDONLY), readOnly(0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &bundleWorld{w.in(t), w.dir}
			disk := filepath.Join(w.dir, c.name)
			smallDisk(t, disk)
			root := filepath.Join(disk, "oci")
			verb := func(args ...string) []string { return append([]string{"--root", root}, args...) }
			c.spoil(t, disk)
			w.fails(1, c.words, verb("create", "--bundle", dir, "x")...)
			w.fails(1, "does not exist", verb("state", "x")...)
			w.ok(verb("delete", "--force", "x")...)
			c.mend(t, disk)
			left, _ := filepath.Glob(filepath.Join(root, "*"))
			if len(left) > 0 {
				t.Errorf("left: %v", left)
			}

			// Everything it takes later has been there from the beginning.
			out, err := os.Create(filepath.Join(w.dir, "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd := w.command(t.Context(), verb("create", "--bundle", dir, "y")...)
			cmd.Stdout, cmd.Stderr = out, out
			if err := w.launch(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, disk)
			w.ok(verb("start", "y")...)
			var st struct{ Status string }
			if err := json.Unmarshal([]byte(w.ok(verb("state", "y")...)), &st); err != nil || st.Status != "running" {
				t.Errorf("%+v, %v", st, err)
			}
			w.fails(1, c.words, verb("create", "--bundle", dir, "z")...)
			w.ok(verb("kill", "y", "KILL")...)
			eventually(t, "it has stopped", func() bool {
				return json.Unmarshal([]byte(w.manis(verb("state", "y")...).stdout), &st) == nil && st.Status == "stopped"
			})
			if c.name == "full" {
				w.ok(verb("delete", "y")...)
				return
			}
			// Nothing can be removed from such a disk, and nothing is lost.
			w.fails(1, c.words, verb("delete", "y")...)
			c.mend(t, disk)
			w.ok(verb("delete", "y")...)
			w.fails(1, "does not exist", verb("state", "y")...)
		})
	}
}

// Hooks that hang are ended after their time, wherever they are, and the verb that they hold up says so.
func TestBundleHangingHooks(t *testing.T) {
	w := newBundles(t)
	second := 1
	hang := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 100"}, Timeout: &second}}
	for name, c := range map[string]struct {
		hooks specs.Hooks
		runs  bool // and the container's code and output are its own
	}{
		"prestart":        {specs.Hooks{Prestart: hang}, false},
		"createContainer": {specs.Hooks{CreateContainer: hang}, false},
		"poststart":       {specs.Hooks{Poststart: hang}, false},
		"poststop":        {specs.Hooks{Poststop: hang}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := &bundleWorld{w.in(t), w.dir}
			script := "echo ran; sleep 1000"
			if c.runs {
				script = "echo ran"
			}
			dir := w.bundle("hanging-"+name, script, func(s *specs.Spec) { s.Hooks = &c.hooks })
			r := w.manis("run", "--bundle", dir, "h")
			if want := map[bool]int{false: 1}[c.runs]; r.code != want || !strings.Contains(r.stderr, name+" hook #0") || !strings.Contains(r.stderr, "more than 1 s") {
				t.Errorf("%s, want code %d", r, want)
			}
			if c.runs && r.stdout != "ran\n" {
				t.Errorf("%s", r)
			}
			w.fails(1, "does not exist", "state", "h")
		})
	}
}

// What config.json may say wrongly, field by field, ends with the exit code that runc has for it, and with nothing left.
func TestBundleBadFields(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", "true", nil)
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Log("without runc to compare with: ", err)
	}
	good := w.config(dir)
	good.Process.Capabilities = &specs.LinuxCapabilities{}
	good.Process.Rlimits = nil
	text, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		// name says what is wrong; patch is merged into the configuration.
		name, patch, words string
		// other: runc 1.1.5 takes it, or says it with another code; why is in the name.
		other bool
	}{
		{name: "a list as the whole", patch: `[]`, words: "config.json"},
		{name: "process is text", patch: `{"process":"sh"}`, words: "config.json"},
		{name: "process is missing", patch: `{"process":null}`, words: "process"},
		{name: "args is text", patch: `{"process":{"args":"sh"}}`, words: "args"},
		{name: "args is empty", patch: `{"process":{"args":[]}}`, words: "process.args"},
		{name: "an argument is empty", patch: `{"process":{"args":[""]}}`, words: "executable file not found"},
		{name: "cwd is empty", patch: `{"process":{"cwd":""}}`, words: "process.cwd"},
		{name: "cwd is relative", patch: `{"process":{"cwd":"x"}}`, words: "process.cwd"},
		{name: "user is negative", patch: `{"process":{"user":{"uid":-1}}}`, words: "uid"},
		{name: "user is too large", patch: `{"process":{"user":{"uid":4294967296}}}`, words: "uid"},
		{name: "an unknown rlimit", patch: `{"process":{"rlimits":[{"type":"RLIMIT_NONE","soft":1,"hard":1}]}}`, words: "RLIMIT_NONE"},
		{name: "an rlimit above its maximum", patch: `{"process":{"rlimits":[{"type":"RLIMIT_NOFILE","soft":2,"hard":1}]}}`, words: "RLIMIT_NOFILE"},
		{name: "an OOM score out of range", patch: `{"process":{"oomScoreAdj":5000}}`, words: "oomScoreAdj"},
		{name: "root is missing", patch: `{"root":null}`, words: "root"},
		{name: "root is a file", patch: `{"root":{"path":"config.json"}}`, words: "config.json"},
		{name: "root leads nowhere", patch: `{"root":{"path":"none"}}`, words: "none"},
		{name: "a mount without destination", patch: `{"mounts":[{"type":"tmpfs","source":"tmpfs"}]}`, words: "mounts[0]"},
		{name: "a mount of an unknown kind", patch: `{"mounts":[{"destination":"/x","type":"nofs","source":"x"}]}`, words: "nofs"},
		{name: "a bind of nothing", patch: `{"mounts":[{"destination":"/x","type":"bind","source":"/no/such","options":["bind"]}]}`, words: "/no/such"},
		{name: "a host name without a namespace for it", patch: `{"linux":{"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"network"}]}}`, words: "hostname"},
		{name: "an unknown namespace", patch: `{"linux":{"namespaces":[{"type":"mount"},{"type":"galaxy"}]}}`, words: "galaxy"},
		{name: "a namespace twice", patch: `{"linux":{"namespaces":[{"type":"mount"},{"type":"mount"}]}}`, words: "namespaces"},
		{name: "a namespace at no path", patch: `{"linux":{"namespaces":[{"type":"mount"},{"type":"uts"},{"type":"network","path":"/no/such"}]}}`, words: "/no/such"},
		{name: "a kernel parameter of the host's", patch: `{"linux":{"sysctl":{"kernel.panic":"1"}}}`, words: "kernel.panic"},
		{name: "a device of an unknown kind", patch: `{"linux":{"devices":[{"path":"/dev/x","type":"z","major":1,"minor":3}]}}`, words: "devices[0]"},
		{name: "an unknown propagation", patch: `{"linux":{"rootfsPropagation":"sideways"}}`, words: "rootfsPropagation"},
		{name: "seccomp that does nothing known", patch: `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_DANCE"}}}`, words: "SCMP_ACT_DANCE"},
		{name: "memory is text", patch: `{"linux":{"resources":{"memory":{"limit":"much"}}}}`, words: "limit"},
		{name: "a CPU that is not there", patch: `{"linux":{"resources":{"cpu":{"cpus":"4000"}}}}`, words: "cpus"},
		{name: "a hook without path", patch: `{"hooks":{"prestart":[{"path":""}]}}`, words: "hooks"},
		{name: "a hook at no path", patch: `{"hooks":{"createRuntime":[{"path":"/no/such"}]}}`, words: "/no/such"},
		{name: "a mapping without its namespace, which runc overlooks", patch: `{"linux":{"uidMappings":[{"containerID":0,"hostID":0,"size":10}]}}`, words: "uidMappings", other: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &bundleWorld{w.in(t), w.dir}
			var config, patch any
			if err := json.Unmarshal(text, &config); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(c.patch), &patch); err != nil {
				t.Fatal(err)
			}
			b, _ := json.Marshal(merged(config, patch))
			if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644); err != nil {
				t.Fatal(err)
			}
			r := w.manis("run", "--bundle", dir, "x")
			if r.code != 1 || !strings.Contains(r.stderr, c.words) {
				t.Errorf("want code 1 and %q, got %s", c.words, r)
			}
			w.fails(1, "does not exist", "state", "x")
			if runc == "" || c.other {
				return
			}
			id := fmt.Sprintf("manis-test-%d", os.Getpid())
			cmd := exec.CommandContext(t.Context(), runc, "--root", filepath.Join(w.dir, "runc"), "run", "--bundle", dir, id)
			cmd.WaitDelay = 10 * time.Second
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != r.code {
				t.Errorf("runc's code is %d: %s", code, out)
			}
		})
	}
}

// merged is a configuration with the members of a patch in it, as JSON merge patches do it.
func merged(config, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	base, _ := config.(map[string]any)
	result := map[string]any{}
	for k, v := range base {
		result[k] = v
	}
	for k, v := range changes {
		if v == nil {
			delete(result, k)
		} else {
			result[k] = merged(result[k], v)
		}
	}
	return result
}

// A caller at the console socket that goes away, at once or with the terminal, leaves a container that can be ended.
func TestBundleConsoleGoesAway(t *testing.T) {
	w := newBundles(t)
	dir := w.bundle("b", "sleep 1000", func(s *specs.Spec) { s.Process.Terminal = true })
	for name, take := range map[string]bool{"at once": false, "with the terminal": true} {
		t.Run(name, func(t *testing.T) {
			w := &bundleWorld{w.in(t), w.dir}
			socket := filepath.Join(w.dir, "console")
			os.Remove(socket)
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				if take {
					b, rights := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
					if _, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(b, rights); err == nil {
						if messages, err := unix.ParseSocketControlMessage(rights[:n]); err == nil && len(messages) == 1 {
							if fds, err := unix.ParseUnixRights(&messages[0]); err == nil {
								unix.Close(fds[0])
							}
						}
					}
				}
				conn.Close()
			}()
			r := w.manis("create", "--bundle", dir, "--console-socket", socket, "c")
			if r.code != 0 {
				// The socket was closed before the terminal was sent: then there is no container.
				w.fails(1, "does not exist", "state", "c")
				return
			}
			w.manis("start", "c")
			w.ok("delete", "--force", "c")
			w.fails(1, "does not exist", "state", "c")
		})
	}
}

// A container without a limit that takes all of its machine's memory is killed for it, with the code of that, and another one
// of the same machine goes on.
func TestBundleGuestOOM(t *testing.T) {
	t.Parallel()
	w := newBundles(t)
	first := w.bundle("first", "sleep 1000", nil)
	w.made("first", first)
	w.ok("start", "first")
	pid := w.state("first").Pid
	second := w.bundle("second", "", func(s *specs.Spec) {
		s.Process.Args = []string{"probe", "hold", "100000"}
		for i, n := range s.Linux.Namespaces {
			if n.Type == specs.IPCNamespace || n.Type == specs.UTSNamespace || n.Type == specs.NetworkNamespace {
				name := map[specs.LinuxNamespaceType]string{specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.NetworkNamespace: "net"}[n.Type]
				s.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, name)
			}
		}
		s.Hostname = ""
	})
	if r := w.manis("run", "--bundle", second, "second"); r.code != 137 {
		t.Errorf("%s, want code 137", r)
	}
	if got := w.ok("exec", "first", "echo", "still here"); got != "still here" {
		t.Errorf("the other container: %q", got)
	}
	w.ok("delete", "--force", "first")
}
