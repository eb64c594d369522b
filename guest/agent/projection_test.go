package agent_test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
)

// projection is a volume "config" with files of this content, below a directory of this name.
func projection(stamp string, files map[string]string) *api.Projection {
	p := &api.Projection{Name: "config", Files: []*api.ProjectedFile{
		{Path: ".", Mode: unix.S_IFDIR | 0o755}, {Path: "..data", Mode: unix.S_IFLNK | 0o777, Content: []byte(stamp)}, {Path: stamp, Mode: unix.S_IFDIR | 0o755},
	}}
	for name, content := range files {
		p.Files = append(p.Files, &api.ProjectedFile{Path: stamp + "/" + name, Mode: unix.S_IFREG | 0o640, Gid: 7, Content: []byte(content)},
			&api.ProjectedFile{Path: name, Mode: unix.S_IFLNK | 0o777, Content: []byte("..data/" + name)})
	}
	return p
}

func TestProjection(t *testing.T) {
	m := theMachine(t)
	ctx := deadline(t)
	publish := func(p *api.Projection) error { _, err := m.agent.Publish(ctx, p); return err }
	if err := publish(projection("..one", nil)); status.Code(err) != codes.NotFound {
		t.Errorf("one that no container has: %v", err)
	}
	has := func(r *api.CreateContainerRequest) {
		r.Projections = []*api.Projection{projection("..one", map[string]string{"a": "first", "b": "second"})}
		r.Mounts = append(r.Mounts, &api.Mount{Destination: "/config", Type: "projection", Source: "config", Options: []string{"rbind", "ro"}})
	}
	c, p := m.start(t, sh("cat"), has)
	list := func(stamp string, names ...string) string {
		return strings.Join(append([]string{"..data", stamp}, names...), "\n") + "\n"
	}
	look := func() string {
		return c.exec(sh("ls -A /config | sort; cat /config/a; stat -c '%a %g' -L /config/a; touch /config/x 2>/dev/null && echo written")).stdout
	}
	if got, want := look(), list("..one", "a", "b")+"first640 7\n"; got != want {
		t.Errorf("at the start: %q, want %q", got, want)
	}
	// Another content, the same again, and one of the same name.
	for _, next := range []struct {
		stamp string
		files map[string]string
		want  string
	}{
		{"..two", map[string]string{"a": "changed", "c": "new"}, list("..two", "a", "c") + "changed640 7\n"},
		{"..two", map[string]string{"a": "changed", "c": "new"}, list("..two", "a", "c") + "changed640 7\n"},
		{"..two", map[string]string{"a": "short"}, list("..two", "a") + "short640 7\n"},
	} {
		if err := publish(projection(next.stamp, next.files)); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != next.want {
			t.Errorf("after %v: %q, want %q", next, got, next.want)
		}
	}
	deep := projection("..x", nil)
	deep.Files = append(deep.Files, &api.ProjectedFile{Path: "..x" + strings.Repeat("/d", 65), Mode: unix.S_IFDIR | 0o755})
	many := projection("..x", nil)
	for i := range 5000 {
		many.Files = append(many.Files, &api.ProjectedFile{Path: fmt.Sprint("f", i), Mode: unix.S_IFREG})
	}
	with := func(f *api.ProjectedFile) *api.Projection {
		p := projection("..x", nil)
		p.Files = append(p.Files, f)
		return p
	}
	for name, bad := range map[string]*api.Projection{
		"nothing":            {Name: "config"},
		"a name that climbs": {Name: "../config", Files: projection("..x", nil).Files},
		"a path that climbs": with(&api.ProjectedFile{Path: "../../etc/passwd", Mode: unix.S_IFREG}),
		"an absolute path":   with(&api.ProjectedFile{Path: "/etc/passwd", Mode: unix.S_IFREG}),
		"a device":           with(&api.ProjectedFile{Path: "null", Mode: unix.S_IFCHR}),
		"twice":              with(&api.ProjectedFile{Path: "..data", Mode: unix.S_IFLNK}),
		"data elsewhere":     projection("../..", nil),
		"deep":               deep,
		"many":               many,
	} {
		if err := publish(bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, want := look(), list("..two", "a")+"short640 7\n"; got != want {
		t.Errorf("after what was refused: %q, want %q", got, want)
	}
	// One that does not fit leaves what was there.
	large := projection("..large", map[string]string{"a": strings.Repeat("x", 3<<20)})
	for i := range 16 {
		large.Files = append(large.Files, &api.ProjectedFile{Path: fmt.Sprint("..large/", i, "/absent"), Mode: unix.S_IFREG})
	}
	if err := publish(large); err == nil {
		t.Error("a file without its directory: no error")
	}
	if got, want := look(), list("..two", "a")+"short640 7\n"; got != want {
		t.Errorf("after one that failed: %q, want %q", got, want)
	}
	p.stdin.Close()
	p.wait()
}

// TestProjectionOfHostileContainer: links that a privileged container puts into the volume lead the agent nowhere.
func TestProjectionOfHostileContainer(t *testing.T) {
	m := theMachine(t)
	c, p := m.start(t, sh("cat"), func(r *api.CreateContainerRequest) {
		r.Projections = []*api.Projection{projection("..one", map[string]string{"a": "first"})}
		r.Mounts = append(r.Mounts, &api.Mount{Destination: "/config", Type: "projection", Source: "config"})
	})
	if r := c.exec(sh("cd /config; mv ..one ..other; ln -s /run ..one; ln -s /run ..two; mkdir -p a.d; ln -s / a.d/root; ls -A | wc -l")); r.stdout != "6\n" {
		t.Fatalf("the links: %q %s", r.stdout, r.stderr)
	}
	for _, stamp := range []string{"..one", "..two"} {
		_, err := m.agent.Publish(deadline(t), projection(stamp, map[string]string{"a": stamp}))
		if err != nil {
			t.Fatalf("%s: %v", stamp, err)
		}
		if r := c.exec(sh("ls -A /config | sort | tr '\\n' ' '; cat /config/a; test -d /run")); r.stdout != "..data "+stamp+" a "+stamp {
			t.Errorf("%s: %q %s", stamp, r.stdout, r.stderr)
		}
	}
	p.stdin.Close()
	p.wait()
}
