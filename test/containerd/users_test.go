package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mappedID is the first of the ids that the host knows a pod's users by.
const mappedID = 2_000_000

// podIDs are the mapping of such a pod, of users and of groups.
func podIDs() []*cri.IDMapping { return []*cri.IDMapping{{HostId: mappedID, Length: 65536}} }

// mapped is a volume as the kubelet gives it to such a pod.
func mapped(from, to string) func(*cri.ContainerConfig) {
	return volume(&cri.Mount{HostPath: from, ContainerPath: to, Readonly: strings.Contains(from, "kubernetes.io~"), UidMappings: podIDs(), GidMappings: podIDs()})
}

// ownUsers is what the kubelet asks for with hostUsers: false.
func ownUsers(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: podIDs(), Gids: podIDs()}
}

// mapsIDs reports whether the host can mount the filesystem of a directory with mapped ids.
func mapsIDs(t *testing.T, dir string) bool {
	t.Helper()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	// The mapping of the first namespace is refused with EPERM where mapping is possible at all.
	ns, err := os.Open("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	return errors.Is(err, unix.EPERM)
}

// TestUserNamespace is a pod with hostUsers: false.
func TestUserNamespace(t *testing.T) {
	d := t.TempDir()
	config := newProjected(t, "configmap", "config", map[string]string{"name": "words"})
	p := newPod(t, "users", ownUsers)
	script := "id -u; tr -s ' ' </proc/self/uid_map; stat -c '%u %g' /; stat -L -c '%a %u %g' /config/name; touch /made && stat -c '%u %g' /made; hostname; chown 1000:1000 /made && stat -c '%u %g' /made"
	out, code := p.output("root", mapped(config.dir, "/config"), "sh", "-c", script)
	if want := "0\n 0 2000000 65536\n0 0\n440 0 2000\n0 0\nusers-host\n1000 1000"; out != want || code != 0 {
		t.Errorf("got %q, exit %d, want %q", out, code, want)
	}
	// It is root in its namespace alone.
	out, _ = p.output("bounded", nil, "sh", "-c", "(echo 1 >/proc/sys/kernel/panic) 2>/dev/null && echo written; mount -t tmpfs none /mnt 2>/dev/null && echo mounted; echo end")
	if out != "end" {
		t.Errorf("beyond its namespace: %q", out)
	}
	second := p.start("second", nil, "sh", "-c", idle)
	if out, code := p.exec(second, "sh", "-c", "id -u; tr -s ' ' </proc/self/uid_map; nc -l -p 80 & sleep 0.5; kill $! && echo listened"); out != "0\n 0 2000000 65536\nlistened" || code != 0 {
		t.Errorf("exec: %q, exit %d", out, code)
	}
	v := mapped(d, "/v")
	if !mapsIDs(t, d) {
		p.fails("volume", "mapped ids", v)
		t.Skipf("the rest was not tried: the host's kernel does not mount the filesystem of %s with mapped ids", d)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(d, "file"), []byte("words"), 0o640), os.Chown(filepath.Join(d, "file"), 0, 7)); err != nil {
		t.Fatal(err)
	}
	out, code = p.output("volume", v, "sh", "-c", "stat -c '%u %g' /v/file; cat /v/file; echo more >/v/made; chown 5:6 /v/made")
	if out != "0 7\nwords" || code != 0 {
		t.Errorf("a volume: %q, exit %d", out, code)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(d, "made"), &st); err != nil || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("what it has made belongs to %d, %d on the host, %v", st.Uid, st.Gid, err)
	}
	// What the host cannot map is said by its name.
	if proc := "/proc/sys"; !mapsIDs(t, proc) {
		p.fails("unmapped", "mapped ids", mapped(proc, "/v"))
	}
}
