package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The kinds of network interfaces that few hosts' kernels have are tried in a machine, whose kernel has them: the tests of
// network/netns run there, with namespaces for both hosts.
func TestNetworkKinds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("tools")
	dir := filepath.Join(w.dir, "netns")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, "netns.test"), "./network/netns")
	build.Dir = top
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests of network/netns: %v\n%s", err, out)
	}
	const run = "^(TestVLANFollowed|TestKinds|TestUnfit)$/(ipvlan|^interface_with_VLANs$|^VLAN_of|dummy)"
	r := w.manis("run", "--rm", "--privileged", "--network", "none", "-m", "512m", "-w", "/tmp", "-v", dir+":/t:ro", "tools", "/t/netns.test", "-test.short", "-test.v", "-test.run", run)
	for _, want := range []string{
		"TestKinds/ipvlan_in_mode_l2", "TestKinds/ipvlan_in_mode_l3", "TestKinds/two_ipvlans_with_one_hardware_address", "TestKinds/interface_with_VLANs",
		"TestKinds/VLAN_of_the_host's", "TestKinds/dummy", "TestVLANFollowed", "TestUnfit/ipvlan_in_mode_l3s",
	} {
		if !strings.Contains(r.stdout+r.stderr, "--- PASS: "+want+" ") {
			t.Errorf("%s has not passed", want)
		}
	}
	if t.Failed() || r.code != 0 {
		t.Errorf("in the machine:\n%s%s", r.stdout, r.stderr)
	}
}
