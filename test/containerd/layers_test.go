package containerd

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"manis/test/stage"
)

// changes is what a container's writable layer holds, as a commit would take it. While it is being changed, that may fail.
func changes(t *testing.T, c *stage.Engine, id string) ([]string, error) {
	t.Helper()
	archive, err := c.Command(t.Context(), "snapshots", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", id).Output()
	if err != nil {
		return nil, fmt.Errorf("ask for the changes of %s: %w", id, err)
	}
	var list []string
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			slices.Sort(list)
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the changes of %s: %w", id, err)
		}
		list = append(list, fmt.Sprintf("%s %c %o %d:%d %d %s", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname))
	}
}

// TestLayers has an image's layers on a disk of the machine's own memory, and the writable one on the host: what a
// container changes is there at once, and is what this host's kernel would have left.
func TestLayers(t *testing.T) {
	c := ctr(t)
	stage.Eventually(t, "an image of the layers", func() bool {
		found, _ := filepath.Glob(filepath.Join(stage.Home(), ".cache", "manis", "lower", "*.erofs"))
		system, _ := filepath.Glob("/var/cache/manis/lower/*.erofs")
		return len(found)+len(system) > 0
	})
	script := `set -e
cd /
rm bin/date; mv bin/dd bin/dd2; echo more >>etc/passwd; chmod 4711 bin/cp; chown 5:6 bin/cpio
rm -rf etc/new; mkdir etc/new; echo in >etc/new/file; ln etc/new/file etc/new/again; ln -s file etc/new/link; mkfifo etc/new/pipe
mkdir -p home/a/b; echo deep >home/a/b/c; mv home/a home/d
rm -rf var; mkdir var; echo only >var/only
rm -rf sbin2; mkdir sbin2; rmdir sbin2
mkdir open; exec 4>open/file; rm open/file; rmdir open; echo more >&4; exec 4>&-
exec 3<bin/false; echo other >tmp/other; mv tmp/other bin/false; [ "$(wc -c <&3)" -gt 100 ]; exec 3<&-
sync`
	detached(t, c, "layered", "sh", "-c", script+"; echo done >/done; sleep 1000")
	stage.Eventually(t, "the container's changes on the host", func() bool {
		now, err := changes(t, c, "layered")
		return err == nil && slices.ContainsFunc(now, func(s string) bool { return strings.HasPrefix(s, "done ") })
	})
	if got := c.OK(t, "task", "exec", "--exec-id", "mounts", "layered", "grep", " / ", "/proc/mounts"); !strings.HasPrefix(got, "overlay") {
		t.Errorf("the root is %s", got)
	}
	c.OK(t, "task", "kill", "--signal", "SIGKILL", "layered")
	await(t, c, "layered", "STOPPED")
	c.Run(t, "task", "rm", "layered")
	got, err := changes(t, c, "layered")
	if err != nil {
		t.Fatal(err)
	}
	// The same by this host's kernel.
	var info struct{ Parent string }
	if err := json.Unmarshal([]byte(c.OK(t, "snapshots", "info", "layered")), &info); err != nil {
		t.Fatal(err)
	}
	c.OK(t, "snapshots", "prepare", "plain", info.Parent)
	t.Cleanup(func() { c.OK(t, "snapshots", "rm", "plain") })
	at := t.TempDir()
	mount := strings.Fields(c.OK(t, "snapshots", "mounts", at, "plain"))
	if out, err := exec.Command(mount[0], append([]string{"--no-mtab"}, mount[1:]...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", mount, err, out)
	}
	out, err := exec.Command("chroot", at, "/bin/sh", "-c", script+"; echo done >/done").CombinedOutput()
	if uerr := unix.Unmount(at, 0); err != nil || uerr != nil {
		t.Fatal(err, uerr, string(out))
	}
	want, err := changes(t, c, "plain")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes:\n%s\nby this host:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
