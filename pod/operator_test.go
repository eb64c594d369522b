package pod

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/place"
)

// TestOperate: the operator of a host sees a pod, and may ask for nothing that is its engine's.
func TestOperate(t *testing.T) {
	places := &place.Places{Run: t.TempDir()}
	dir := Dir(places, "test", "one")
	if err := MakeDir(dir); err != nil {
		t.Fatal(err)
	}
	p := New(places, dir)
	annotations := map[string]string{"io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.sandbox-namespace": "shop"}
	o := p.Operate(Whose("k8s.io", "one", annotations))
	<-o.ready
	list, err := List(t.Context(), places)
	if err != nil || len(list) != 1 || list[0].Err != nil {
		t.Fatalf("%v, %v", list, err)
	}
	want := Identity{Engine: "containerd", Namespace: "k8s.io", ID: "one", Name: "shop/web", PID: os.Getpid()}
	if d := list[0].Description; d.Identity != want || d.Machine != nil || len(d.Containers) != 0 {
		t.Errorf("the pod is %+v", d)
	}
	for _, verb := range []string{"create", "start", "signal", "remove", "update", "pause", "resume", "checkpoint", "await", "status", "nonesuch"} {
		if err := list[0].call(t.Context(), verb, ref{"one"}, nil); err == nil || !strings.Contains(err.Error(), "belongs to its engine") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	for _, verb := range operators[1:] {
		if err := list[0].call(t.Context(), verb, ref{"one"}, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s of a container that is not there: %v", verb, err)
		}
	}
	// One that is being made, for which there is no machine yet.
	if err := p.add(&member{pod: p, id: "early", status: specs.StateCreating, done: make(chan struct{})}); err != nil {
		t.Fatal(err)
	}
	if d, err := list[0].Describe(t.Context()); err != nil || len(d.Containers) != 1 || d.Containers[0].ID != "early" || d.Containers[0].Status != specs.StateCreating {
		t.Errorf("%+v, %v", d, err)
	}
	for _, verb := range []string{"process", "processes", "stats"} {
		if err := list[0].call(t.Context(), verb, ref{"early"}, nil); !errors.Is(err, ErrState) {
			t.Errorf("%s of a container that is being made: %v", verb, err)
		}
	}
	if s, err := list[0].Attend(t.Context(), &ExecRequest{ID: "early"}, os.Stdin, os.Stdout, os.Stderr); !errors.Is(err, ErrState) {
		t.Errorf("exec in a container that is being made: %v, %v", s, err)
	}
	o.Close()
	if list, err := List(t.Context(), places); err != nil || len(list) != 0 {
		t.Errorf("a pod that has ended: %v, %v", list, err)
	}
}

// TestList: what was left by those that were killed is nothing, and who does not answer holds nobody up.
func TestList(t *testing.T) {
	places := &place.Places{Run: t.TempDir()}
	if list, err := List(t.Context(), places); err != nil || len(list) != 0 {
		t.Errorf("without the directory: %v, %v", list, err)
	}
	make := func(name string, i *Identity) string {
		t.Helper()
		dir := filepath.Join(places.Pods(), name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if i != nil {
			if err := i.write(dir); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	listen := func(dir string) net.Listener {
		t.Helper()
		l, err := net.Listen("unix", Socket(dir))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	make("empty", nil)
	killed := listen(make("killed", &Identity{Engine: "containerd", ID: "killed"}))
	killed.(*net.UnixListener).SetUnlinkOnClose(false)
	killed.Close()
	os.WriteFile(filepath.Join(places.Pods(), "file"), nil, 0o600)
	listen(make("hangs", &Identity{Engine: "containerd", ID: "named", PID: 7}))
	unnamed := make("unnamed", nil)
	listen(unnamed)
	os.WriteFile(filepath.Join(unnamed, identityName), []byte(`{"ID`), 0o600)
	nonsense := listen(make("nonsense", &Identity{Engine: "containerd", ID: "nonsense"}))
	go func() {
		for {
			conn, err := nonsense.Accept()
			if err != nil {
				return
			}
			var r request
			receive(conn.(*net.UnixConn), &r)
			conn.Write([]byte{0xff, 0xff, 0xff, 0xff})
			conn.Close()
		}
	}()
	list, err := List(t.Context(), places)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]error{}
	for _, f := range list {
		found[f.Description.ID] = f.Err
	}
	if len(found) != 3 || !errors.Is(found["named"], ErrSilent) || !errors.Is(found["unnamed"], ErrSilent) || found["nonsense"] == nil {
		t.Errorf("found %v", found)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := List(ctx, places); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
}

// TestWhose: engines are known by what they write into bundles.
func TestWhose(t *testing.T) {
	for _, c := range []struct {
		name, dir   string
		annotations map[string]string
		want        string
	}{
		{"docker", "/run/containerd/io.containerd.runtime.v2.task/moby/x", nil, "docker"},
		{"containerd's runc shim", "/run/containerd/io.containerd.runtime.v2.task/k8s.io/x", nil, "containerd k8s.io"},
		{"podman", "/var/lib/containers/storage/overlay-containers/x/userdata", map[string]string{"io.container.manager": "libpod"}, "podman"},
		{"by hand", "/tmp/bundle", nil, "oci"},
	} {
		i := whoseBundle("x", c.dir, &specs.Spec{Annotations: c.annotations})
		if got := strings.TrimSpace(i.Engine + " " + i.Namespace); got != c.want || i.ID != "x" {
			t.Errorf("%s: %+v", c.name, i)
		}
	}
	a := map[string]string{"io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.name": "web", "io.kubernetes.container.name": "app"}
	if name := containerName(a); name != "shop/web/app" {
		t.Errorf("name %s", name)
	}
}

// TestSession: the end of a session is told by the pod, or by its silence.
func TestSession(t *testing.T) {
	end := func(answer []byte) (int, error) {
		t.Helper()
		places := &place.Places{Run: t.TempDir()}
		dir := Dir(places, "test", "one")
		if err := MakeDir(dir); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", Socket(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			var r request
			files, err := receive(conn.(*net.UnixConn), &r)
			if err != nil || len(files) != 4 {
				return
			}
			send(conn.(*net.UnixConn), reply{})
			if answer != nil {
				files[0].Write(answer)
			}
			closeAll(files)
		}()
		s, err := At(Socket(dir)).Attend(t.Context(), &ExecRequest{ID: "one"}, os.Stdin, os.Stdout, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.Wait()
	}
	if code, err := end([]byte{9}); err != nil || code != 9 {
		t.Errorf("exit %d, %v", code, err)
	}
	if _, err := end(nil); !errors.Is(err, ErrGone) {
		t.Errorf("a pod that ends without a word: %v", err)
	}
}
