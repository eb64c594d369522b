package agent_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
)

// copyOut fetches a path.
func (c *container) copyOut(name string, follow bool) (*api.CopyOutResponse, map[string]*entry, error) {
	c.t.Helper()
	stream, token, err := c.host.Stream()
	if err != nil {
		c.t.Fatal(err)
	}
	archive := collect(stream)
	reply, err := c.agent.CopyOut(deadline(c.t), &api.CopyOutRequest{Id: c.id, Path: name, Stream: token, FollowLink: follow})
	if err != nil {
		return nil, nil, err
	}
	entries := make(map[string]*entry)
	r := tar.NewReader(strings.NewReader(archive.String()))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return reply, entries, nil
		}
		if err != nil {
			c.t.Fatalf("archive of %s: %v", name, err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			c.t.Fatal(err)
		}
		entries[h.Name] = &entry{Header: h, content: string(b)}
	}
}

type entry struct {
	*tar.Header
	content string
}

// copyIn sends an archive.
func (c *container) copyIn(r *api.CopyInRequest, entries ...*entry) error {
	c.t.Helper()
	stream, token, err := c.host.Stream()
	if err != nil {
		c.t.Fatal(err)
	}
	defer stream.Close()
	r.Id, r.Stream = c.id, token
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, e := range entries {
		e.Size = int64(len(e.content))
		if err := w.WriteHeader(e.Header); err != nil {
			c.t.Fatal(err)
		}
		io.WriteString(w, e.content)
	}
	w.Close()
	go func() {
		stream.Write(archive.Bytes())
		stream.Close()
	}()
	_, err = c.agent.CopyIn(deadline(c.t), r)
	return err
}

func TestCopyOut(t *testing.T) {
	m := theMachine(t)
	c, _ := sleeper(t, m, nil)
	c.exec(sh("mkdir /tree; cd /tree; echo a >a; ln a b; ln -s a l; mkfifo p; mknod d c 1 3; truncate -s 1000000 sparse; mkdir -p deep/er; echo x >deep/er/x; chown 7:8 a; chmod 4751 a; touch -d '2001-02-03 04:05:06' deep"))
	reply, got, err := c.copyOut("/tree", false)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Name != "tree" || !reply.IsDir {
		t.Errorf("reply %v", reply)
	}
	for name, check := range map[string]func(e *entry) bool{
		"tree/":          func(e *entry) bool { return e.Typeflag == tar.TypeDir },
		"tree/l":         func(e *entry) bool { return e.Typeflag == tar.TypeSymlink && e.Linkname == "a" },
		"tree/p":         func(e *entry) bool { return e.Typeflag == tar.TypeFifo },
		"tree/d":         func(e *entry) bool { return e.Typeflag == tar.TypeChar && e.Devmajor == 1 && e.Devminor == 3 },
		"tree/sparse":    func(e *entry) bool { return e.content == strings.Repeat("\x00", 1000000) },
		"tree/deep/":     func(e *entry) bool { return e.ModTime.Equal(time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)) },
		"tree/deep/er/x": func(e *entry) bool { return e.content == "x\n" },
	} {
		if e := got[name]; e == nil || !check(e) {
			t.Errorf("%s: %+v", name, e)
		}
	}
	a, b := got["tree/a"], got["tree/b"]
	if a.Typeflag == tar.TypeLink {
		a, b = b, a
	}
	if a.content != "a\n" || a.Mode != 0o4751 || a.Uid != 7 || a.Gid != 8 || b.Typeflag != tar.TypeLink {
		t.Errorf("hard links: %+v, %+v", a, b)
	}

	if e := func() *entry { _, got, _ := c.copyOut("/data/file", false); return got["file"] }(); e == nil || e.PAXRecords["SCHILY.xattr.user.colour"] != "green" {
		t.Errorf("extended attributes: %+v", e)
	}
	// Links: as they are, or what they point to; never out of the container.
	for _, x := range []struct {
		path   string
		follow bool
		want   string
	}{
		{"/tree/l", false, "l:symlink"},
		{"/tree/l", true, "l:a\n"},
		{"/escape/etc/group", false, "group:root:x:0:\nuser:x:1000:\nwheel:x:10:user\naudio:x:29:user,root\n"},
		{"/../../../data/sub/other", false, "other:deeper\n"},
	} {
		reply, got, err := c.copyOut(x.path, x.follow)
		if err != nil {
			t.Errorf("%s: %v", x.path, err)
			continue
		}
		e := got[reply.Name]
		text := reply.Name + ":" + e.content
		if e.Typeflag == tar.TypeSymlink {
			text = reply.Name + ":symlink"
		}
		if text != x.want {
			t.Errorf("%s: %q, want %q", x.path, text, x.want)
		}
	}
	for _, path := range []string{"/nonesuch", "/etc/passwd/x", "/up/containers"} {
		if _, _, err := c.copyOut(path, true); status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", path, err)
		}
	}
	// Without a stream the path is only described.
	reply, err = m.agent.CopyOut(deadline(t), &api.CopyOutRequest{Id: c.id, Path: "/tree/l"})
	if err != nil || reply.LinkTarget != "a" || reply.Name != "l" {
		t.Errorf("description: %v, %v", reply, err)
	}
}

func TestCopyOutOfChangingTree(t *testing.T) {
	m := theMachine(t)
	// Files that grow, shrink, and change into links to the outside meanwhile.
	c, p := m.start(t, sh("mkdir /w; cd /w; echo up; while :; do for i in 1 2 3; do echo data >f$i; mkdir -p d$i; : >f$i; rm -rf d$i; ln -sfn / d$i; rm -f d$i; done; done"), nil)
	p.stdin.Close()
	p.stdout.await(t, "up")
	for range 20 {
		_, got, err := c.copyOut("/w", false)
		if err != nil && !strings.Contains(err.Error(), "no such file") {
			t.Fatal(err)
		}
		for name := range got {
			if strings.Count(name, "/") > 2 {
				t.Errorf("followed a link: %s", name)
			}
		}
	}
}

func TestCopyIn(t *testing.T) {
	m := theMachine(t)
	c, _ := sleeper(t, m, nil)
	when := time.Date(2011, 12, 13, 14, 15, 16, 0, time.UTC)
	file := func(name, content string) *entry {
		return &entry{&tar.Header{Name: name, Mode: 0o4755, Uid: 7, Gid: 8, ModTime: when, Typeflag: tar.TypeReg}, content}
	}
	c.exec(sh("mkdir -p /in/dir; echo old >/in/dir/file; echo old >/in/plain"))
	entries := func() []*entry {
		x := file("x", "xattr")
		x.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"}
		return []*entry{
			{&tar.Header{Name: "new/", Mode: 0o700, ModTime: when, Typeflag: tar.TypeDir, Uid: 7}, ""},
			file("new/deep/file", "content"),
			file("plain", "new"),
			{&tar.Header{Name: "hard", Linkname: "plain", Typeflag: tar.TypeLink}, ""},
			{&tar.Header{Name: "soft", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink, ModTime: when}, ""},
			{&tar.Header{Name: "pipe", Mode: 0o600, Typeflag: tar.TypeFifo, ModTime: when}, ""},
			file("zeros", strings.Repeat("\x00", 1<<20)+"end"),
			x,
		}
	}
	for _, keep := range []bool{true, false} {
		t.Run(fmt.Sprintf("ownership %v", keep), func(t *testing.T) {
			if err := c.copyIn(&api.CopyInRequest{Path: "/in", KeepOwnership: keep}, entries()...); err != nil {
				t.Fatal(err)
			}
			r := c.exec(sh("cd /in; cat new/deep/file plain hard; echo; stat -c '%a %u %g %h %Y' plain; stat -c '%a %u' new; readlink soft; stat -c %F pipe; tail -c 3 zeros; stat -c ' %s' zeros; [ $(stat -c %b zeros) -lt 1000 ] && echo sparse; cat dir/file"))
			owner, dir := "0 0", "0"
			if keep {
				owner, dir = "7 8", "7"
			}
			want := "contentnewnew\n4755 " + owner + " 2 1323785716\n700 " + dir + "\n/etc/passwd\nfifo\nend 1048579\nsparse\nold\n"
			if r.stdout != want {
				t.Errorf("got  %q\nwant %q\n%s", r.stdout, want, r.stderr)
			}
		})
	}
	for name, x := range map[string]struct {
		request *api.CopyInRequest
		entry   *entry
		want    string
	}{
		"names that lead out": {&api.CopyInRequest{Path: "/in"}, file("../out", ""), "leads out"},
		"hard link out":       {&api.CopyInRequest{Path: "/in"}, &entry{&tar.Header{Name: "h", Linkname: "../../etc/passwd", Typeflag: tar.TypeLink}, ""}, "leads out"},
		"file over directory": {&api.CopyInRequest{Path: "/in", NoOverwriteDirNonDir: true}, file("dir", ""), "cannot overwrite"},
		"directory over file": {&api.CopyInRequest{Path: "/in", NoOverwriteDirNonDir: true}, &entry{&tar.Header{Name: "plain", Typeflag: tar.TypeDir}, ""}, "cannot overwrite"},
		"no such directory":   {&api.CopyInRequest{Path: "/nonesuch"}, file("x", ""), "could not find"},
		"not a directory":     {&api.CopyInRequest{Path: "/etc/passwd"}, file("x", ""), "not a directory"},
		"read-only":           {&api.CopyInRequest{Path: "/sys/fs/cgroup"}, file("x", ""), "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.copyIn(x.request, x.entry); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("error %v, want one with %q", err, x.want)
			}
		})
	}
	t.Run("links in the container", func(t *testing.T) {
		// An absolute link means the container's root, not the agent's.
		c.exec(sh("ln -s /target /in/link; ln -s ../../../../../../run/manis /in/agent; mkdir /target; mkdir -p /run/manis"))
		if err := c.copyIn(&api.CopyInRequest{Path: "/in"}, file("link/a", "1"), file("agent/b", "2")); err != nil {
			t.Fatal(err)
		}
		if r := c.exec(sh("cat /target/a /run/manis/b")); r.stdout != "12" {
			t.Errorf("got %q %s", r.stdout, r.stderr)
		}
	})
	t.Run("damaged archive", func(t *testing.T) {
		stream, token, err := m.host.Stream()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			stream.Write(bytes.Repeat([]byte("no archive at all "), 1000))
			stream.Close()
		}()
		_, err = m.agent.CopyIn(deadline(t), &api.CopyInRequest{Id: c.id, Path: "/in", Stream: token})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("error %v", err)
		}
	})
	t.Run("what must last", func(t *testing.T) {
		tmpfs := &api.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/memory"}
		for name, x := range map[string]struct {
			path, want string
			change     func(*api.CreateContainerRequest)
		}{
			"on a disk":           {"/etc", "", func(r *api.CreateContainerRequest) { r.Rootfs.ScratchDisk = "scratch" }},
			"in memory":           {"/etc", "would be lost", nil},
			"read-only":           {"/etc", "marked read-only", func(r *api.CreateContainerRequest) { r.Rootfs.Readonly = true }},
			"tmpfs above a disk":  {"/memory", "would be lost", func(r *api.CreateContainerRequest) { r.Rootfs.ScratchDisk, r.Mounts = "scratch", []*api.Mount{tmpfs} }},
			"no such directory":   {"/nonesuch", "could not find", nil},
			"link that leads out": {"/escape/memory", "would be lost", func(r *api.CreateContainerRequest) { r.Rootfs.ScratchDisk, r.Mounts = "scratch", []*api.Mount{tmpfs} }},
		} {
			t.Run(name, func(t *testing.T) {
				box, proc, err := m.create(t, sh("true"), x.change)
				if err != nil {
					t.Fatal(err)
				}
				defer proc.stdin.Close()
				err = box.copyIn(&api.CopyInRequest{Path: x.path, MustLast: true}, file("added", "early"))
				if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
					t.Errorf("error %v, want one with %q", err, x.want)
				}
				if _, _, err := box.copyOut(x.path+"/added", false); (err == nil) != (x.want == "") {
					t.Errorf("copied back: %v", err)
				}
				if _, err := m.agent.RemoveContainer(deadline(t), &api.ContainerRef{Id: box.id}); err != nil {
					t.Error(err) // the next one needs the disk
				}
			})
		}
	})
	t.Run("before the start", func(t *testing.T) {
		box, _, err := m.create(t, sh("cat /etc/added"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := box.copyIn(&api.CopyInRequest{Path: "/etc"}, file("added", "early")); err != nil {
			t.Fatal(err)
		}
		if _, got, err := box.copyOut("/etc/added", false); err != nil || got["added"].content != "early" {
			t.Errorf("copied back: %v, %v", got, err)
		}
	})
}
