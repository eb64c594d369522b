package spec_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
	"manis/image"
	"manis/place"
	"manis/sandbox"
	"manis/test/debimage"
	"manis/vmm"
	"manis/vmm/qemu"
)

// world is what all tests with a machine share: the guest image and a root filesystem.
type world struct {
	dir, kernel, initramfs, rootfs string
	verity                         *agent.Verity
}

var prepare = sync.OnceValues(func() (world, error) {
	guest := "../../guest/image"
	if dir := os.Getenv(place.GuestVariable); dir != "" {
		guest = dir
	}
	w := world{kernel: filepath.Join(guest, "vmlinuz"), initramfs: filepath.Join(guest, "initramfs")}
	for _, f := range []string{w.kernel, w.initramfs} {
		if _, err := os.Stat(f); err != nil {
			return w, err
		}
	}
	var err error
	if w.dir, err = os.MkdirTemp("", "manis-spec-"); err != nil {
		return w, err
	}
	ctx := context.Background()
	builder, err := debimage.New(nil)
	if err != nil {
		return w, err
	}
	recipe, err := debimage.Find("busybox")
	if err != nil {
		return w, err
	}
	img, err := builder.Build(ctx, recipe)
	if err != nil {
		return w, err
	}
	layout := filepath.Join(w.dir, "layout")
	if err := debimage.WriteLayout(layout, img, "busybox:latest"); err != nil {
		return w, err
	}
	store, err := image.Open(filepath.Join(w.dir, "images"))
	if err != nil {
		return w, err
	}
	loaded, err := store.Load(ctx, layout, image.LoadOptions{})
	if err != nil {
		return w, err
	}
	root, release, err := store.Rootfs(ctx, loaded[0], nil)
	if err != nil {
		return w, err
	}
	// The store is this process's own: nothing removes the file before the end.
	release()
	w.rootfs = root.Path
	w.verity = &agent.Verity{
		RootHash: root.RootHash, Salt: root.Salt, Algorithm: "sha256",
		DataBlockBytes: uint32(root.BlockSize), HashBlockBytes: uint32(root.BlockSize),
		DataBlocks: uint64(root.DataBlocks), HashOffset: uint64(root.HashOffset),
	}
	return w, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if w, _ := prepare(); w.dir != "" {
		os.RemoveAll(w.dir)
	}
	os.Exit(code)
}

// machine boots the virtual machine that a configuration asks for.
func machine(t *testing.T, cfg *container.Config) (*sandbox.Sandbox, spec.Environment) {
	t.Helper()
	w, err := prepare()
	if err != nil {
		t.Skipf("no guest or image here: %v", err)
	}
	memory, vcpus, err := spec.Machine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(w.rootfs)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	box, err := sandbox.Start(ctx, sandbox.Config{
		Driver: qemu.New(""),
		VM: vmm.Config{
			Kernel: w.kernel, Initrd: w.initramfs, MemoryBytes: memory, VCPUs: vcpus, Accel: vmm.AccelTCG,
			Disks: []vmm.Disk{{Serial: "root", File: file, ReadOnly: true}},
		},
		Setup: &agent.SetupRequest{Hostname: cfg.Hostname, Network: &agent.Network{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Kill() })
	return box, spec.Environment{RootDisk: "root", Verity: w.verity}
}

// output runs the container's process to its end.
func output(t *testing.T, box *sandbox.Sandbox, cfg *container.Config, env spec.Environment) (string, *agent.WaitResponse) {
	t.Helper()
	r, err := spec.Build(cfg, env)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, token, err := box.Stream()
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if deadline, ok := ctx.Deadline(); ok {
		stream.SetDeadline(deadline)
	}
	r.Process.Stdout = token
	if _, err := box.CreateContainer(ctx, r); err != nil {
		t.Fatal(err)
	}
	if _, err := box.StartContainer(ctx, &agent.StartContainerRequest{Id: r.Id}); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	end, err := box.Wait(ctx, r.Id, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := box.Agent().RemoveContainer(ctx, &agent.ContainerRef{Id: r.Id}); err != nil {
		t.Error(err)
	}
	return string(text), end
}

func declared(id, script string) *container.Config {
	return &container.Config{
		ID: id, Hostname: "box",
		Process: container.Process{Args: []string{"sh", "-c", script}},
		Network: container.Network{Mode: "none", AddHosts: []string{"db:10.1.2.3"}},
	}
}

// What Build asks for is what a process in the machine finds.
func TestInTheMachine(t *testing.T) {
	umask := uint32(0o27)
	type check struct {
		change func(*container.Config)
		script string
		want   string
		exit   uint32
	}
	checks := map[string]check{
		"capabilities of root":   {nil, "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\n\\t'", "CapInh:0000000000000000CapPrm:00000000a80425fbCapEff:00000000a80425fbCapBnd:00000000a80425fbCapAmb:0000000000000000", 0},
		"capabilities of a user": {func(c *container.Config) { c.Process.User = "1000:1000" }, "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\n\\t'; id -u", "CapInh:0000000000000000CapPrm:0000000000000000CapEff:0000000000000000CapBnd:00000000a80425fbCapAmb:00000000000000001000\n", 0},
		"all capabilities":       {func(c *container.Config) { c.Security.Privileged = true }, "grep -E 'CapEff|Seccomp:' /proc/self/status | tr -d '\\n\\t'", "CapEff:000001ffffffffffSeccomp:0", 0},
		"filter":                 {nil, "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | tr -d '\\n\\t'; unshare -m true 2>&1 | grep -o 'not permitted'", "NoNewPrivs:0Seccomp:2not permitted\n", 0},
		"no new privileges":      {func(c *container.Config) { c.Security.NoNewPrivileges = true }, "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | tr -d '\\n\\t'", "NoNewPrivs:1Seccomp:2", 0},
		"environment":            {func(c *container.Config) { c.Process.Env = []string{"A=1"}; c.Process.Umask = &umask }, "echo $PATH $HOSTNAME $HOME $A; umask; hostname; pwd", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin box /root 1\n0027\nbox\n/\n", 0},
		"files":                  {nil, "cat /etc/hostname; tail -n 1 /etc/hosts; head -n 1 /etc/hosts", "box\n10.1.2.3\tdb\n127.0.0.1\tlocalhost\n", 0},
		"limits":                 {func(c *container.Config) { c.Resources.Ulimits = []container.Ulimit{{Name: "core", Soft: 7, Hard: -1}} }, "grep -E 'open files|core file|Max processes' /proc/self/limits | tr -s ' '", "Max core file size 7 unlimited bytes \nMax processes unlimited unlimited processes \nMax open files 1024 524288 files \n", 0},
		"cgroup": {func(c *container.Config) {
			c.Resources = container.Resources{MilliCPUs: 1500, CPUShares: 1024, PidsLimit: 50, OOMScore: 300}
		}, "cd /sys/fs/cgroup; cat cpu.max cpu.weight pids.max; cat /proc/self/oom_score_adj", "150000 100000\n39\n50\n300\n", 0},
		"mounts": {nil, "grep -E ' (/dev|/sys|/proc|/dev/shm|/sys/fs/cgroup|/dev/pts|/dev/mqueue) ' /proc/mounts | cut -d' ' -f2-3 | sort | tr '\\n' ';'; grep ' /sys ' /proc/mounts | grep -c ro,; grep ' /dev/shm ' /proc/mounts | grep -o size=[0-9a-z]*", "/dev tmpfs;/dev/mqueue mqueue;/dev/pts devpts;/dev/shm tmpfs;/proc proc;/sys sysfs;/sys/fs/cgroup cgroup2;1\nsize=65536k\n", 0},
		"hidden": {nil, "wc -c < /proc/interrupts; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/printk || echo refused", "0\n0\nrefused\n", 0},
		"shown":  {func(c *container.Config) { c.Security.UnmaskPaths = []string{"ALL"} }, "ls /sys/firmware | grep -c .", "1\n", 0},
		"tmpfs": {func(c *container.Config) {
			c.Mounts = []container.Mount{{Type: "tmpfs", Destination: "/a/b", Options: []string{"size=1m,mode=700,exec"}}}
		}, "grep ' /a/b ' /proc/mounts | cut -d' ' -f3-4; stat -c %a /a/b", "tmpfs rw,nosuid,nodev,relatime,size=1024k,mode=700\n700\n", 0},
		"read-only": {func(c *container.Config) { c.ReadOnly = true }, "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo taken", "refused\ntaken\n", 0},
		"devices": {func(c *container.Config) {
			c.Resources.DeviceList = []container.Device{{Path: "/dev/fuse"}, {Path: "/dev/net/tun", PathInContainer: "/dev/tun"}}
		}, "ls -l /dev/fuse /dev/tun | tr -s ' ' | cut -d' ' -f1,5,6; exec 3<>/dev/fuse && echo open", "crw-rw-rw- 10, 229\ncrw-rw-rw- 10, 200\nopen\n", 0},
		"sysctls": {func(c *container.Config) {
			c.Sysctls = map[string]string{"kernel.shmmax": "65536", "net.core.somaxconn": "99"}
		}, "cd /proc/sys; cat kernel/shmmax net/core/somaxconn net/ipv4/ip_unprivileged_port_start; tr '\\t' ' ' < net/ipv4/ping_group_range", "65536\n99\n0\n0 2147483647\n", 0},
		"groups":    {func(c *container.Config) { c.Process.User, c.Process.AddGroups = "5:6", []string{"7", "8"} }, "id -u; id -g; id -G", "5\n6\n6 7 8\n", 0},
		"init":      {func(c *container.Config) { c.Init = true }, "echo $$ | grep -qx 1 || echo child", "child\n", 0},
		"exit code": {nil, "exit 42", "", 42},
	}
	box, env := machine(t, declared("", ""))
	for name, c := range checks {
		t.Run(name, func(t *testing.T) {
			cfg := declared(strings.ReplaceAll(name, " ", "-"), c.script)
			if c.change != nil {
				c.change(cfg)
			}
			got, end := output(t, box, cfg, env)
			if got != c.want || end.ExitCode != c.exit {
				t.Errorf("output %q, exit %d\nwant   %q, exit %d", got, end.ExitCode, c.want, c.exit)
			}
		})
	}
}

// The machine is so much larger than the limit that the container can use all of
// it, and not more.
func TestMemoryOfTheMachine(t *testing.T) {
	for name, c := range map[string]struct{ limit, use string }{
		"least":   {"6", "2"},
		"256 MiB": {"256", "240"},
	} {
		t.Run(name, func(t *testing.T) {
			limit := uint64(6 << 20)
			if c.limit == "256" {
				limit = 256 << 20
			}
			within := declared("within", "dd if=/dev/zero of=/dev/shm/x bs=1M count="+c.use+" 2>/dev/null && echo fits")
			within.Resources.MemoryBytes, within.ShmBytes = limit, 1<<30
			box, env := machine(t, within)
			got, end := output(t, box, within, env)
			if got != "fits\n" || end.OomKilled {
				t.Errorf("use of %s of %s MiB: %q, %v", c.use, c.limit, got, end)
			}
			beyond := declared("beyond", "dd if=/dev/zero of=/dev/shm/x bs=1M count="+c.limit+" && echo fits")
			beyond.Resources.MemoryBytes, beyond.ShmBytes = limit, 1<<30
			if got, end := output(t, box, beyond, env); strings.Contains(got, "fits") || !end.OomKilled {
				t.Errorf("use of more than %s MiB: %q, %v", c.limit, got, end)
			}
		})
	}
}
