package pod

import (
	"os"
	"path/filepath"
	"testing"

	"manis/api/agent"
	"manis/bundle"
)

// TestMakePoints makes mount points in a root whose links lead out of it, where they mean what they mean inside.
func TestMakePoints(t *testing.T) {
	root, outside := filepath.Join(t.TempDir(), "root"), t.TempDir()
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../..", filepath.Join(root, "up")); err != nil {
		t.Fatal(err)
	}
	makePoints(&bundle.Plan{Root: root, Create: &agent.CreateContainerRequest{Mounts: []*agent.Mount{
		{Destination: "/etc/app/file", File: true}, {Destination: "/data"}, {Destination: "/link/escaped"}, {Destination: "/up/climbed"},
	}}})
	if st, err := os.Lstat(filepath.Join(root, "etc/app/file")); err != nil || !st.Mode().IsRegular() {
		t.Errorf("the file's mount point: %v %v", st, err)
	}
	for _, name := range []string{"data", "climbed"} {
		if st, err := os.Lstat(filepath.Join(root, name)); err != nil || !st.IsDir() {
			t.Errorf("the mount point %s: %v %v", name, st, err)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("made outside of the root: %v", left)
	}
}
