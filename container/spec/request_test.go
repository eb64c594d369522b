package spec

import (
	"net/netip"
	"slices"
	"testing"

	"manis/container"
	"manis/policy"
)

// What a container asks for is what a policy hears of it.
func TestRequest(t *testing.T) {
	r, err := Request(config(func(c *container.Config) {
		c.Process.User = "1000:0"
		c.Security = container.Security{CapDrop: []string{"ALL"}, CapAdd: []string{"CHOWN"}, NoNewPrivileges: true, Seccomp: "unconfined"}
		c.Resources = container.Resources{MemoryBytes: 64 << 20, MilliCPUs: 500, PidsLimit: 9, DeviceList: []container.Device{{Path: "/dev/fuse", PathInContainer: "/dev/null"}}}
		c.Network = container.Network{Mode: "user", AllowLinkLocal: true, Egress: []string{"any,tcp"},
			Ports: []container.Port{{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 80, ContainerPort: 8080}}}
		c.Mounts = []container.Mount{{Type: "bind", Source: "/a", ReadOnly: true}, {Type: "volume", Source: "v"}, {Type: "tmpfs"}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Process; !slices.Equal(p.Capabilities, []string{"CAP_CHOWN"}) || p.Privileged || p.Escalation || !p.Unfiltered || p.User != policy.NotRoot {
		t.Errorf("process %+v", p)
	}
	if *r.Sizes != (policy.Amounts{MemoryBytes: 64 << 20, MilliCPUs: 500, Pids: 9}) {
		t.Errorf("sizes %+v", r.Sizes)
	}
	if n := r.Network; n.Mode != "user" || n.HostLoopback || !n.LinkLocal || n.Egress.String() != "any,tcp" || n.Publish[0] != (policy.Port{Address: netip.MustParseAddr("127.0.0.1"), Port: 80}) {
		t.Errorf("network %+v", n)
	}
	if !slices.Equal(r.Mounts, []policy.Mount{{Source: "/a", ReadOnly: true}}) || !slices.Equal(r.Volumes, []string{"v"}) || !slices.Equal(r.Devices, []string{"/dev/fuse"}) {
		t.Errorf("mounts %v, volumes %v, devices %v", r.Mounts, r.Volumes, r.Devices)
	}
	// Without limits it has what its machine has.
	r, err = Request(config(func(c *container.Config) { c.Security.Privileged = true }))
	if err != nil {
		t.Fatal(err)
	}
	if r.Sizes.MemoryBytes == 0 || r.Sizes.MilliCPUs == 0 || r.Sizes.Pids != -1 || !r.Process.Unfiltered || len(r.Process.Capabilities) != len(allCapabilities) || r.Network.Egress != nil {
		t.Errorf("without limits: %+v, %+v", r.Sizes, r.Process)
	}
}

func TestRequestUser(t *testing.T) {
	for user, want := range map[string]policy.User{
		"": policy.Root, "0": policy.Root, "000": policy.Root, "root": policy.Root, ":5": policy.Root, "0:5": policy.Root,
		"1000": policy.NotRoot, "1000:0": policy.NotRoot, "www": policy.Named, "0x0": policy.Named, "4294967296": policy.Named, "-0": policy.Named,
	} {
		if got := RequestUser(user); got != want {
			t.Errorf("%q: %v, want %v", user, got, want)
		}
	}
	cfg := config(func(c *container.Config) { c.Process.User = "1000" })
	if r := RequestExec(cfg, "", true); r.Process.User != policy.NotRoot || !r.Process.Privileged || len(r.Process.Capabilities) == 0 {
		t.Errorf("privileged: %+v", r.Process)
	}
	if r := RequestExec(cfg, "0", false); r.Process.User != policy.Root || r.Process.Capabilities != nil {
		t.Errorf("as root: %+v", r.Process)
	}
}
