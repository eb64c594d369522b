package agent_test

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
)

func TestNetwork(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("ip addr show eth0; ip route; ip -6 route; ip link show lo"), nil)
	for _, want := range []string{
		"mtu 1400", "link/ether 02:00:00:00:12:34", "inet 10.9.8.7/24 brd 10.9.8.255", "inet6 fd00::7/64",
		"default via 10.9.8.1 dev eth0", "172.16.0.0/12 via 10.9.8.2", "default via fd00::1", "LOOPBACK,UP",
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("lacks %q:\n%s", want, r.stdout)
		}
	}
	if r := m.run(t, sh("ping -c1 -W2 127.0.0.1 >/dev/null && echo loopback; ping -c1 -W2 ::1 >/dev/null && echo v6"), nil); r.stdout != "loopback\nv6\n" {
		t.Errorf("loopback: %q %s", r.stdout, r.stderr)
	}
}

// veritySetup makes a hash tree behind the data of an image.
func veritySetup(t *testing.T, image string) *api.Verity {
	t.Helper()
	need(t, "veritysetup")
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	blocks := (st.Size() + 4095) / 4096
	if err := os.Truncate(image, blocks*4096); err != nil {
		t.Fatal(err)
	}
	salt := make([]byte, 32)
	rand.Read(salt)
	out, err := exec.Command("veritysetup", "format", image, image, "--no-superblock", "--hash-offset", strconv.FormatInt(blocks*4096, 10),
		"--data-blocks", strconv.FormatInt(blocks, 10), "--salt", hex.EncodeToString(salt)).CombinedOutput()
	if err != nil {
		t.Fatalf("veritysetup: %v\n%s", err, out)
	}
	v := &api.Verity{Salt: hex.EncodeToString(salt), DataBlockBytes: 4096, HashBlockBytes: 4096, DataBlocks: uint64(blocks), HashOffset: uint64(blocks * 4096), Algorithm: "sha256"}
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == "Root hash" {
			v.RootHash = strings.TrimSpace(value)
		}
	}
	return v
}

func TestVerity(t *testing.T) {
	kernelImage(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	busyboxTree(t, tree)
	payload := make([]byte, 1<<20)
	rand.Read(payload)
	os.WriteFile(filepath.Join(tree, "payload"), payload, 0o644)
	good, bad, broken := filepath.Join(dir, "good"), filepath.Join(dir, "bad"), filepath.Join(dir, "broken")
	mkerofs(t, tree, good)
	v := veritySetup(t, good)
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	// A flipped bit in a file, and one in the superblock.
	at := strings.Index(string(b), string(payload[4096:4096+64]))
	if at < 0 {
		t.Fatal("the payload is not in the image as it is")
	}
	b[at] ^= 1
	os.WriteFile(bad, b, 0o644)
	b[at] ^= 1
	b[1024+100] ^= 1
	os.WriteFile(broken, b, 0o644)

	m := boot(t, hardware{disks: []disk{
		{serial: "good", file: good, readonly: true}, {serial: "bad", file: bad, readonly: true}, {serial: "broken", file: broken, readonly: true},
	}})
	t.Cleanup(m.stop)
	m.setUp(t, setupRequest())
	on := func(serial string, v *api.Verity) func(r *api.CreateContainerRequest) {
		return func(r *api.CreateContainerRequest) { r.Rootfs = &api.RootFS{Disk: serial, Verity: v} }
	}
	if r := m.run(t, sh("md5sum /payload >/dev/null && echo whole"), on("good", v)); r.stdout != "whole\n" {
		t.Errorf("good image: %q %s", r.stdout, r.stderr)
	}
	if r := m.run(t, sh("cat /payload >/dev/null || echo refused; echo on"), on("bad", v)); r.stdout != "refused\non\n" || !strings.Contains(r.stderr, "Input/output error") {
		t.Errorf("changed file: %q %s", r.stdout, r.stderr)
	}
	if _, _, err := m.create(t, sh("true"), on("broken", v)); err == nil || !strings.Contains(err.Error(), "root hash") {
		t.Errorf("changed superblock: %v", err)
	}
	other := func(change func(v *api.Verity)) *api.Verity {
		c := &api.Verity{RootHash: v.RootHash, Salt: v.Salt, DataBlockBytes: v.DataBlockBytes, HashBlockBytes: v.HashBlockBytes, DataBlocks: v.DataBlocks, HashOffset: v.HashOffset, Algorithm: v.Algorithm}
		change(c)
		return c
	}
	for name, x := range map[string]struct {
		verity *api.Verity
		want   string
	}{
		"other root hash":    {other(func(v *api.Verity) { v.RootHash = strings.Repeat("ab", 32) }), "root hash"},
		"root hash not hex":  {other(func(v *api.Verity) { v.RootHash = "zz" }), "64 hex digits"},
		"injection":          {other(func(v *api.Verity) { v.Salt = "- 1 ignore_corruption" }), "salt is not hex"},
		"algorithm":          {other(func(v *api.Verity) { v.Algorithm = "md5" }), "md5"},
		"block size":         {other(func(v *api.Verity) { v.DataBlockBytes = 1000 }), "block size"},
		"offset":             {other(func(v *api.Verity) { v.HashOffset++ }), "multiple"},
		"more than the disk": {other(func(v *api.Verity) { v.DataBlocks *= 1000 }), "verity table"},
	} {
		if _, _, err := m.create(t, sh("true"), on("good", x.verity)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Several containers at once on one checked disk.
	a, _ := sleeper(t, m, on("good", v))
	if r := m.run(t, sh("echo second"), on("good", v)); r.stdout != "second\n" {
		t.Errorf("second container: %q", r.stdout)
	}
	if r := a.exec(sh("cat /payload | wc -c")); strings.TrimSpace(r.stdout) != "1048576" {
		t.Errorf("first container afterwards: %q", r.stdout)
	}
}

func TestBeforeSetup(t *testing.T) {
	kernelImage(t)
	m := boot(t, hardware{memory: "128"})
	t.Cleanup(m.stop)
	if _, err := m.agent.CreateContainer(deadline(t), &api.CreateContainerRequest{Id: "x", Process: sh("true")}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("create: %v", err)
	}
	for name, x := range map[string]struct {
		change func(r *api.SetupRequest)
		want   string
	}{
		"other version":  {func(r *api.SetupRequest) { r.Version++ }, "version"},
		"little entropy": {func(r *api.SetupRequest) { r.Entropy = r.Entropy[:16] }, "entropy"},
		"unknown sysctl": {func(r *api.SetupRequest) { r.Sysctls = map[string]string{"net.nonesuch": "1"} }, "net.nonesuch"},
		"bad value":      {func(r *api.SetupRequest) { r.Sysctls = map[string]string{"net.ipv4.ip_forward": "many"} }, "net.ipv4.ip_forward"},
		"bad address":    {func(r *api.SetupRequest) { r.Network = &api.Network{Device: "lo", Addresses: []string{"10.0.0.1"}} }, "ADDRESS/BITS"},
		"bad mac":        {func(r *api.SetupRequest) { r.Network = &api.Network{Device: "lo", Mac: "x"} }, "hardware address"},
		"unreached route": {func(r *api.SetupRequest) {
			r.Network = &api.Network{Device: "lo", Routes: []*api.Route{{Destination: "10.0.0.0/8", Gateway: "fd00::1"}}}
		}, "family"},
		"unknown share": {func(r *api.SetupRequest) { r.Shares = []*api.Share{{Tag: "nope"}} }, "nope"},
		"bad share":     {func(r *api.SetupRequest) { r.Shares = []*api.Share{{Tag: "../x"}} }, "not a tag"},
	} {
		t.Run(name, func(t *testing.T) {
			r := setupRequest()
			x.change(r)
			if _, err := m.agent.Setup(deadline(t), r); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("error %v, want one with %q", err, x.want)
			}
		})
	}
	// None of them has made the machine unusable.
	r := setupRequest()
	r.ClockUnixNs = time.Date(2033, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()
	reply := m.setUp(t, r)
	if reply.KernelRelease == "" || reply.ReadyNs == 0 || reply.ReceivedNs < reply.ReadyNs || reply.DoneNs < reply.ReceivedNs {
		t.Errorf("reply %v", reply)
	}
}

func TestShutdownPowersOff(t *testing.T) {
	kernelImage(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	busyboxTree(t, tree)
	root, scratch := filepath.Join(dir, "root"), filepath.Join(dir, "scratch")
	mkerofs(t, tree, root)
	mkext4(t, scratch, 16<<20)
	for name, end := range map[string]func(m *machine){
		"shutdown":  func(m *machine) { m.agent.Shutdown(deadline(t), &api.Empty{}) },
		"host gone": func(m *machine) { m.host.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			m := boot(t, hardware{disks: []disk{{serial: "root", file: root, readonly: true}, {serial: "scratch", file: scratch}}})
			t.Cleanup(m.stop)
			m.setUp(t, setupRequest())
			_, p := m.start(t, sh("echo "+name+" >/kept; echo up; sleep 1000"), func(r *api.CreateContainerRequest) { r.Rootfs.ScratchDisk = "scratch" })
			p.stdout.await(t, "up")
			end(m)
			select {
			case <-m.gone:
			case <-time.After(requestTimeout):
				t.Fatalf("the machine is still on; console:\n%s", m.log())
			}
			// The disk is complete and clean.
			if out, err := exec.Command("fsck.ext4", "-fn", scratch).CombinedOutput(); err != nil {
				t.Errorf("fsck: %v\n%s", err, out)
			}
			out, err := exec.Command("debugfs", "-R", "cat /data/kept", scratch).Output()
			if err != nil || strings.TrimSpace(string(out)) != name {
				t.Errorf("on the disk: %q, %v", out, err)
			}
		})
	}
}

// cpu is the processor time that QEMU has used: what a busy host does not
// distort.
func (m *machine) cpu() time.Duration {
	total := time.Duration(0)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", m.qemu.Process.Pid))
	for _, name := range tasks {
		if b, err := os.ReadFile(name); err == nil {
			n, _ := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			total += time.Duration(n)
		}
	}
	return total.Round(10 * time.Microsecond)
}

// TestSpans prints what a cold start costs; it promises nothing.
func TestSpans(t *testing.T) {
	kernelImage(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	busyboxTree(t, tree)
	root := filepath.Join(dir, "root")
	mkerofs(t, tree, root)
	v := veritySetup(t, root)
	m := boot(t, hardware{disks: []disk{{serial: "root", file: root, readonly: true}}})
	t.Cleanup(m.stop)
	s := m.setUp(t, setupRequest())
	t.Logf("host: Setup answered %v after the start", time.Since(m.started).Round(time.Millisecond))
	t.Logf("CPU of QEMU until then: %v", m.cpu())
	t.Logf("ready at %d ms, Setup %d us", s.ReadyNs/1e6, (s.DoneNs-s.ReceivedNs)/1e3)
	for round := range 3 {
		cpu := m.cpu()
		var used []string
		spent := func() {
			now := m.cpu()
			used = append(used, (now - cpu).String())
			cpu = now
		}
		shared.next++
		c := &container{machine: m, t: t, id: fmt.Sprintf("s%d", shared.next)}
		p := command("true")
		proc := c.open(p, "")
		start := time.Now()
		created, err := m.agent.CreateContainer(deadline(t), &api.CreateContainerRequest{Id: c.id, Rootfs: &api.RootFS{Disk: "root", Verity: v}, Process: p})
		if err != nil {
			t.Fatal(err)
		}
		create := time.Since(start)
		spent()
		started, err := m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: c.id})
		if err != nil {
			t.Fatal(err)
		}
		run := time.Since(start) - create
		spent()
		proc.stdin.Close()
		proc.wait()
		wait := time.Since(start) - create - run
		spent()
		if _, err := m.agent.RemoveContainer(deadline(t), &api.ContainerRef{Id: c.id}); err != nil {
			t.Fatal(err)
		}
		spent()
		var spans []string
		for _, s := range append(created.Spans, started.Spans...) {
			spans = append(spans, fmt.Sprintf("%s %d us", s.Name, (s.EndNs-s.StartNs)/1e3))
		}
		t.Logf("round %d: create %v, start %v, wait %v, remove %v; QEMU's CPU %v; %s", round, create.Round(time.Microsecond), run.Round(time.Microsecond),
			wait.Round(time.Microsecond), (time.Since(start) - create - run - wait).Round(time.Microsecond), used, strings.Join(spans, ", "))
	}
}
