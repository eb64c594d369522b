package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Host directories and files appear in the container, live, and read-only ones cannot be written
// by any means that the container's root has.
func TestHostMounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	dir, ro, single := filepath.Join(w.dir, "dir"), filepath.Join(w.dir, "ro"), filepath.Join(w.dir, "single")
	for _, d := range []string{dir, ro} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{dir + "/here": "from the host", ro + "/precious": "precious", single: "one file", single + "-ro": "one file"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.up("--name", "c", "--privileged",
		"-v", dir+":/dir", "-v", ro+":/ro:ro", "-v", single+":/etc/single", "-v", single+"-ro:/etc/single-ro:ro",
		"--mount", "type=bind,src="+dir+",dst=/again,readonly", "-v", "./dir:/relative",
		"box", "sleep", "1000")
	t.Run("directory both ways", func(t *testing.T) {
		w := w.in(t)
		if got := w.sh("c", "cat /dir/here /relative/here && echo back >/dir/there && mkdir /dir/sub && mv /dir/there /dir/sub/"); got != "from the hostfrom the host" {
			t.Errorf("%q", got)
		}
		if b, err := os.ReadFile(dir + "/sub/there"); err != nil || string(b) != "back\n" {
			t.Errorf("on the host: %q, %v", b, err)
		}
	})
	t.Run("changes of the host show at once", func(t *testing.T) {
		w := w.in(t)
		if err := os.WriteFile(dir+"/late", []byte("first"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := w.sh("c", "cat /dir/late"); got != "first" {
			t.Errorf("%q", got)
		}
		if err := os.WriteFile(dir+"/late", []byte("and second"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := w.sh("c", "cat /dir/late"); got != "and second" {
			t.Errorf("after a change: %q", got)
		}
	})
	t.Run("what programs do with files", func(t *testing.T) {
		w := w.in(t)
		if err := os.Mkdir(dir+"/habits", 0o777); err != nil {
			t.Fatal(err)
		}
		habits(t, w.ok("exec", "c", "probe", "habits", "/dir/habits"))
		left(t, dir+"/habits")
	})
	t.Run("single file", func(t *testing.T) {
		w := w.in(t)
		if got := w.sh("c", "cat /etc/single; echo changed >/etc/single"); got != "one file" {
			t.Errorf("%q", got)
		}
		if b, err := os.ReadFile(single); err != nil || string(b) != "changed\n" {
			t.Errorf("on the host: %q, %v", b, err)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		w := w.in(t)
		if got := w.sh("c", "cat /ro/precious /etc/single-ro; touch /ro/x 2>&1; echo x 2>&1 >/etc/single-ro; true"); !strings.Contains(got, "preciousone file") ||
			strings.Count(got, "Read-only file system") != 2 {
			t.Errorf("%q", got)
		}
	})
	t.Run("read-only whatever root tries", func(t *testing.T) {
		w := w.in(t)
		// The numbers are those of the mounts, sorted as the product sorts them; all are tried.
		args := []string{"exec", "c", "probe", "writable", "/ro"}
		for _, n := range []string{"0", "1", "2", "3", "4", "5"} {
			args = append(args, "binds/"+n)
		}
		r := w.manis(args...)
		t.Log(r.stdout)
		for _, path := range []string{ro, dir} {
			if path == ro {
				if _, err := os.Lstat(filepath.Join(path, "escape")); err == nil {
					t.Errorf("a file was written into %s", path)
				}
			}
		}
		if entries, err := os.ReadDir(ro); err != nil || len(entries) != 1 {
			t.Errorf("%v is in the read-only directory, %v", entries, err)
		}
		if b, err := os.ReadFile(ro + "/precious"); err != nil || string(b) != "precious" {
			t.Errorf("%q, %v", b, err)
		}
		// Also the single file, and the directory's read-only second appearance.
		w.manis("exec", "c", "sh", "-c", "mount -o remount,rw /etc/single-ro; echo x >/etc/single-ro; mount -o remount,rw /again; touch /again/escape2")
		if b, err := os.ReadFile(single + "-ro"); err != nil || string(b) != "one file" {
			t.Errorf("the single file: %q, %v", b, err)
		}
		if _, err := os.Lstat(dir + "/escape2"); err == nil {
			t.Error("written through the read-only mount of a writable directory")
		}
	})
	t.Run("nothing above the mount is reached", func(t *testing.T) {
		w := w.in(t)
		secret := filepath.Join(w.dir, "secret")
		if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(secret, dir+"/link"); err != nil {
			t.Fatal(err)
		}
		if got := w.sh("c", "cat /dir/link /dir/../secret /dir/../../secret 2>/dev/null; ln -s "+secret+" /dir/link2; cat /dir/link2 2>/dev/null; echo end"); got != "end" {
			t.Errorf("read %q", got)
		}
	})
	t.Run("inspect", func(t *testing.T) {
		var mounts []struct {
			Type, Source, Destination string
			RW                        bool
		}
		if err := json.Unmarshal([]byte(w.in(t).field("c", "{{json .Mounts}}")), &mounts); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, m := range mounts {
			found = found || m.Type == "bind" && m.Source == ro && m.Destination == "/ro" && !m.RW
		}
		if !found || len(mounts) != 6 {
			t.Errorf("%+v", mounts)
		}
	})
}

// Named volumes are filled from the image at first, keep what is written with its owners
// over containers and restarts, and go when nobody uses them and they are told to.
func TestVolumes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.loadImage(boxWith(t, func(c *v1.Config) { c.Volumes = map[string]struct{}{"/anonymous": {}} },
		file{name: "data/", mode: 0o750, uid: 33, gid: 34},
		file{name: "data/seed", mode: 0o640, uid: 1000, gid: 1001, body: "seed"},
		file{name: "data/sub/", mode: 0o2775, gid: 50},
		file{name: "data/sub/deep", mode: 0o4755, body: "deep"},
		file{name: "data/link", kind: '2', link: "sub/deep"},
		file{name: "anonymous/seed", body: "seed"},
	), "seeded:1")

	w.up("--name", "one", "-v", "data:/data", "-v", "empty:/data2:nocopy", "-v", "/made/up", "seeded:1", "sleep", "1000")
	t.Run("filled from the image", func(t *testing.T) {
		files := w.in(t).tree("one", "/data", "/anonymous", "/data2")
		for _, want := range []entry{
			{Path: "/data", Mode: unix.S_IFDIR | 0o750, UID: 33, GID: 34},
			{Path: "/data/seed", Mode: unix.S_IFREG | 0o640, UID: 1000, GID: 1001},
			{Path: "/data/sub", Mode: unix.S_IFDIR | 0o2775, GID: 50},
			{Path: "/data/sub/deep", Mode: unix.S_IFREG | 0o4755},
			{Path: "/data/link", Mode: unix.S_IFLNK | 0o777},
			{Path: "/anonymous/seed", Mode: unix.S_IFREG | 0o644},
		} {
			got, ok := files[want.Path]
			if !ok || got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID {
				t.Errorf("%s: %+v, want %+v", want.Path, got, want)
			}
		}
	})
	w.sh("one", "chown -R 70:71 /data/sub && chmod 700 /data/sub && echo kept >/data/sub/new && ln /data/sub/new /data/hard && mknod /data/null c 1 3 && rm /data/seed && echo kept >/anonymous/new && mkfifo /data/pipe && ln -sf /etc/passwd /data/link")
	before := w.tree("one", "/data")
	t.Run("files belong to one user of the host", func(t *testing.T) {
		w := w.in(t)
		point := w.ok("volume", "inspect", "--format", "{{.Mountpoint}}", "data")
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(point, "sub", "new"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid == 70 || st.Mode&0o6000 != 0 {
			t.Errorf("on the host the file belongs to %d with mode %o", st.Uid, st.Mode)
		}
	})
	t.Run("kept over a restart", func(t *testing.T) {
		w := w.in(t)
		w.ok("restart", "-t", "0", "one")
		after := w.tree("one", "/data")
		sameTree(t, before, after)
		if got := w.sh("one", "cat /anonymous/new; test -e /data/seed && echo refilled; true"); got != "kept" {
			t.Errorf("%q", got)
		}
	})
	t.Run("in use", func(t *testing.T) {
		w := w.in(t)
		w.fails(1, "volume is in use", "volume", "rm", "data")
		if got := w.ok("volume", "prune", "-a", "-f"); strings.Contains(got, "data") {
			t.Errorf("prune removed %s", got)
		}
	})
	t.Run("kept for another container", func(t *testing.T) {
		w := w.in(t)
		w.ok("rm", "-f", "one")
		w.up("--name", "two", "-v", "data:/elsewhere", "-v", "data:/ro:ro", "-v", "empty:/data2", "seeded:1", "sleep", "1000")
		after := make(map[string]entry)
		for path, e := range w.tree("two", "/elsewhere") {
			after[strings.Replace(path, "/elsewhere", "/data", 1)] = e
		}
		sameTree(t, before, after)
		if got := w.sh("two", "echo x 2>&1 >/ro/x; cat /ro/hard"); !strings.Contains(got, "Read-only") || !strings.HasSuffix(got, "kept") {
			t.Errorf("the read-only side: %q", got)
		}
		w.ok("rm", "-f", "-v", "two")
	})
	t.Run("ls, rm and prune", func(t *testing.T) {
		w := w.in(t)
		names := strings.Fields(w.ok("volume", "ls", "-q"))
		// one was removed without -v: its two anonymous volumes are still there.
		if len(names) != 4 {
			t.Errorf("volumes %q, want data, empty and two without a name", names)
		}
		if got := w.ok("volume", "ls", "-q", "--filter", "dangling=true"); len(strings.Fields(got)) != 4 {
			t.Errorf("unused: %q", got)
		}
		if got := w.ok("volume", "ls", "--format", "{{.Name}} {{.Driver}}", "--filter", "name=empty"); got != "empty local" {
			t.Errorf("%q", got)
		}
		w.ok("volume", "prune", "-f")
		if got := strings.Fields(w.ok("volume", "ls", "-q")); len(got) != 2 {
			t.Errorf("after prune of those without a name: %q", got)
		}
		w.ok("volume", "rm", "data", "empty")
		w.fails(1, "no such volume", "volume", "rm", "data")
		w.fails(1, "no such volume", "volume", "inspect", "data")
		w.ok("volume", "rm", "-f", "data")
		w.fails(1, "a/b", "volume", "create", "a/b")
		if n, _ := w.files("volumes/volumes"); n != 1 {
			t.Errorf("%d files left of volumes", n-1)
		}
	})
}

// sameTree compares files but for what differs from mount to mount.
func sameTree(t *testing.T, want, got map[string]entry) {
	t.Helper()
	for path, a := range want {
		b, ok := got[path]
		if !ok {
			t.Errorf("%s is gone", path)
			continue
		}
		if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Links != b.Links || a.Target != b.Target || a.Major != b.Major || a.Minor != b.Minor ||
			a.Mode&unix.S_IFMT == unix.S_IFREG && a.Size != b.Size {
			t.Errorf("%s was %+v and is %+v", path, a, b)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, were %d", len(got), len(want))
	}
}

// Anonymous volumes go with their container under --rm, and with rm -v.
func TestAnonymousVolumesGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.loadImage(boxWith(t, func(c *v1.Config) { c.Volumes = map[string]struct{}{"/v": {}} }), "vol:1")
	if got := w.ok("run", "--rm", "-v", "named:/named", "vol:1", "sh", "-c", "touch /v/x /named/x && echo ok"); got != "ok" {
		t.Errorf("%q", got)
	}
	if got := w.ok("volume", "ls", "-q"); got != "named" {
		t.Errorf("volumes after --rm: %q", got)
	}
	w.ok("create", "--name", "c", "vol:1")
	if got := strings.Fields(w.ok("volume", "ls", "-q")); len(got) != 2 {
		t.Errorf("volumes with a container: %q", got)
	}
	w.ok("rm", "-v", "c")
	if got := w.ok("volume", "ls", "-q"); got != "named" {
		t.Errorf("volumes after rm -v: %q", got)
	}
}

// The writable layer has a limit that the container meets and the host does not, and is kept
// from one start to the next; in memory it is not.
func TestWritableLayer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("on disk", func(t *testing.T) {
		w := w.in(t)
		w.ok("run", "--name", "disk", "--storage-opt", "size=32m", "box", "sh", "-c",
			"dd if=/dev/zero of=/fill bs=1M 2>&1 | grep -c 'No space left'; rm /fill; sync")
		if got := w.ok("logs", "disk"); got != "1" {
			t.Errorf("no ENOSPC at 32 MiB: %q", got)
		}
		if _, bytes := w.files("containers"); bytes > 48<<20 {
			t.Errorf("the container takes %d MiB of the host's disk", bytes>>20)
		}
	})
	t.Run("kept between starts", func(t *testing.T) {
		w := w.in(t)
		w.ok("run", "--name", "kept", "box", "sh", "-c", "cat /state 2>/dev/null; echo x >>/state; ls /etc | grep -c '^shadow$'; rm -f /etc/shadow; true")
		if got := w.ok("start", "-a", "kept"); got != "x\n0" {
			t.Errorf("the second start printed %q", got)
		}
		if got := w.ok("start", "-a", "kept"); got != "x\nx\n0" {
			t.Errorf("the third start printed %q", got)
		}
	})
	t.Run("in memory", func(t *testing.T) {
		w := w.in(t)
		got := w.ok("run", "--name", "memory", "--storage-opt", "type=memory", "--storage-opt", "size=16m", "box", "sh", "-c",
			"test -e /x && echo kept; touch /x; dd if=/dev/zero of=/fill bs=1M 2>&1 | grep -c 'No space left'")
		if got != "1" {
			t.Errorf("%q", got)
		}
	})
}

// habits checks what the probe of that name says.
func habits(t *testing.T, out string) {
	t.Helper()
	found := map[string]string{}
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found) < 10 {
		t.Fatalf("%v: %s", err, out)
	}
	for name, result := range found {
		if result != "done" {
			t.Errorf("%s: %s", name, result)
		}
	}
}

// left checks that of the probe's files only those that it has not removed are on the host.
func left(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("on the host are %v, %v", entries, err)
	}
	for _, e := range entries {
		if e.Type()&(os.ModeSocket|os.ModeNamedPipe) == 0 {
			t.Errorf("%s is neither a socket nor a FIFO", e.Name())
		}
	}
}
