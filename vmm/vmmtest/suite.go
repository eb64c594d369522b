package vmmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/vmm"
)

// Run is the suite. driver returns the driver under test.
func Run(t *testing.T, driver vmm.Driver) {
	s := suite{driver}
	t.Run("Config", s.config)
	t.Run("Devices", s.devices)
	t.Run("Freeze", s.freeze)
	t.Run("Save", s.save)
	t.Run("Taps", s.taps)
	t.Run("Plug", s.plug)
	t.Run("Attach", s.attach)
	t.Run("Grow", s.grow)
	t.Run("Ends", s.ends)
	t.Run("Rejected", s.rejected)
	t.Run("Cancelled", s.cancelled)
}

type suite struct{ driver vmm.Driver }

// base is the smallest VM.
func base(t testing.TB) vmm.Config {
	return vmm.Config{Kernel: Kernel(t), Initrd: Initrd(t), MemoryBytes: 128 << 20, Accel: vmm.AccelTCG, RunDir: t.TempDir()}
}

// Start starts a VM that the test owns, and returns it with a client that has
// had its first answer.
func Start(t testing.TB, driver vmm.Driver, c vmm.Config) (vmm.VM, *Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v, err := driver.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Kill(); err != nil {
			t.Error("kill:", err)
		}
		if t.Failed() {
			t.Logf("console:\n%s", v.Console())
		}
	})
	// Written long before anything in the guest listens.
	g := NewGuest(v.Agent())
	if got := g.Ask(t, "echo hello"); got != "hello" {
		t.Fatalf("first answer %q", got)
	}
	return v, g
}

func (s suite) config(t *testing.T) {
	disk := tempFile(t, 1<<20)
	for name, c := range map[string]struct {
		change func(c *vmm.Config)
		says   string
	}{
		"no kernel":          {func(c *vmm.Config) { c.Kernel = "" }, "no kernel"},
		"missing kernel":     {func(c *vmm.Config) { c.Kernel = "/nonexistent" }, "/nonexistent"},
		"kernel is no file":  {func(c *vmm.Config) { c.Kernel = "/" }, "not a file"},
		"missing initrd":     {func(c *vmm.Config) { c.Initrd = "/nonexistent" }, "/nonexistent"},
		"too little memory":  {func(c *vmm.Config) { c.MemoryBytes = 1 << 20 }, "at least 64 MiB"},
		"odd memory":         {func(c *vmm.Config) { c.MemoryBytes = 100<<20 + 1 }, "multiple"},
		"too many vcpus":     {func(c *vmm.Config) { c.VCPUs = 1000 }, "1000 processors"},
		"unknown accel":      {func(c *vmm.Config) { c.Accel = "warp" }, "warp"},
		"two words":          {func(c *vmm.Config) { c.Cmdline = []string{"a b"} }, "one word"},
		"serial with comma":  {func(c *vmm.Config) { c.Disks = []vmm.Disk{{Serial: "a,readonly=off", File: disk}} }, "serial"},
		"serial twice":       {func(c *vmm.Config) { c.Disks = []vmm.Disk{{Serial: "a", File: disk}, {Serial: "a", File: disk}} }, "unique"},
		"frozen in part":     {func(c *vmm.Config) { c.Frozen = &vmm.Frozen{} }, "without its memory"},
		"tag with slash":     {func(c *vmm.Config) { c.Shares = []vmm.Share{{Tag: "../x"}} }, "tag"},
		"relative host path": {share(vmm.ShareEntry{Name: "a", HostPath: "etc"}), "absolute"},
		"missing host path":  {share(vmm.ShareEntry{Name: "a", HostPath: "/nonexistent"}), "/nonexistent"},
		"name leads upwards": {share(vmm.ShareEntry{Name: "..", HostPath: "/etc"}), "name"},
		"file is directory":  {share(vmm.ShareEntry{Name: "a", HostPath: "/etc", File: true}), "directory"},
		"directory is file":  {share(vmm.ShareEntry{Name: "a", HostPath: "/etc/passwd"}), "not a directory"},
		"multicast address":  {func(c *vmm.Config) { c.NIC = &vmm.NIC{MAC: "01:00:5e:00:00:01", Conn: disk} }, "unicast"},
		"tap and connection": {func(c *vmm.Config) {
			c.NIC = &vmm.NIC{MAC: "52:54:00:00:00:01", Conn: disk, Tap: disk}
		}, "both"},
		"address with comma": {func(c *vmm.Config) { c.NIC = &vmm.NIC{MAC: "52:54:00:00:00:01,x=y", Conn: disk} }, "unicast"},
	} {
		t.Run(name, func(t *testing.T) {
			config := base(t)
			c.change(&config)
			v, err := s.driver.Start(t.Context(), config)
			if err == nil {
				v.Kill()
				t.Fatal("started")
			}
			if !errors.Is(err, vmm.ErrConfig) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q, want ErrConfig with %q", err, c.says)
			}
		})
	}
}

func share(e vmm.ShareEntry) func(*vmm.Config) {
	return func(c *vmm.Config) { c.Shares = []vmm.Share{{Tag: "t", Entries: []vmm.ShareEntry{e}}} }
}

func tempFile(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// devices tests all that a VM is made of on one VM.
func (s suite) devices(t *testing.T) {
	c := base(t)
	c.VCPUs = 2
	c.MemoryBytes = 192 << 20
	c.ConsoleLimit = 4096
	c.Cmdline = []string{"test.word=1"}

	written := tempFile(t, 4<<20)
	if _, err := written.WriteString("root image"); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(written.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	scratch := tempFile(t, 8<<20)
	c.Disks = []vmm.Disk{{Serial: "root", File: root, ReadOnly: true}, {Serial: "scratch.1", File: scratch}, {Serial: "junk", File: tempFile(t, 1<<20), Sync: vmm.SyncUnsafe}}

	host := shareTree(t)
	c.Shares = []vmm.Share{
		{Tag: "binds", Entries: []vmm.ShareEntry{
			{Name: "rw", HostPath: host + "/rw"}, {Name: "ro", HostPath: host + "/ro", ReadOnly: true},
			{Name: "file", HostPath: host + "/file", File: true}, {Name: "rofile", HostPath: host + "/file", File: true, ReadOnly: true},
		}},
		{Tag: "grows", Grows: true},
		{Tag: "volumes", MapOwnership: true, Entries: []vmm.ShareEntry{{Name: "v", HostPath: host + "/volume"}}},
	}

	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "nic"), os.NewFile(uintptr(fds[1]), "nic")
	defer ours.Close()
	c.NIC = &vmm.NIC{MAC: "52:54:00:12:34:56", Conn: theirs}

	v, g := Start(t, s.driver, c)
	theirs.Close()

	t.Run("processors and memory", func(t *testing.T) {
		if n := strings.Count(g.Ask(t, "cat /proc/cpuinfo"), "processor\t:"); n != 2 {
			t.Errorf("%d processors, want 2", n)
		}
		fields := strings.Fields(g.Ask(t, "cat /proc/meminfo"))
		if kb, _ := strconv.Atoi(fields[1]); kb < 130<<10 || kb > 192<<10 {
			t.Errorf("%d kB of memory, want somewhat less than 192 MiB", kb)
		}
		if words := g.Ask(t, "cat /proc/cmdline"); !strings.Contains(words, "test.word=1") {
			t.Errorf("command line %q lacks our word", words)
		}
	})
	t.Run("disks", func(t *testing.T) { disks(t, g, scratch) })
	t.Run("shares", func(t *testing.T) { shares(t, g, host) })
	t.Run("growing share", func(t *testing.T) { growing(t, v, g, host) })
	t.Run("network", func(t *testing.T) { network(t, g, ours) })
	t.Run("bulk", func(t *testing.T) { bulk(t, g) })
	t.Run("console", func(t *testing.T) {
		g.Ask(t, "flood %d", 256<<10)
		// The last line may still be in a queue of the guest's.
		for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			b := v.Console()
			if len(b) > c.ConsoleLimit {
				t.Fatalf("%d bytes of console, want at most %d", len(b), c.ConsoleLimit)
			}
			if strings.HasSuffix(strings.TrimSpace(string(b)), "end of flood") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("console ends with %q", b[max(0, len(b)-100):])
			}
		}
	})
	t.Run("pause", func(t *testing.T) { pause(t, v, g) })
	t.Run("info", func(t *testing.T) {
		info := v.Info()
		if err := unix.Kill(info.PID, 0); err != nil && err != unix.EPERM {
			t.Errorf("process %d: %v", info.PID, err)
		}
		if info.Version == "" || info.Accel != vmm.AccelTCG || len(info.Args) == 0 || info.MemoryBytes != c.MemoryBytes || info.VCPUs != 2 || len(info.Start) == 0 {
			t.Errorf("incomplete: %+v", info)
		}
	})
	t.Run("memory", func(t *testing.T) {
		m, err := v.Memory()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("guest %d MiB, private %d MiB, cached %d MiB", m.Guest>>20, m.Private>>20, m.Cached>>20)
		if m.Guest < 8<<20 || m.Guest > c.MemoryBytes || m.Private == 0 {
			t.Errorf("%+v of a guest with %d bytes", m, c.MemoryBytes)
		}
	})
	if err := v.Kill(); err != nil {
		t.Error(err)
	}
	if _, err := v.Memory(); !errors.Is(err, vmm.ErrEnded) {
		t.Errorf("memory after the end: %v, want ErrEnded", err)
	}
	if e := v.Exit(); e.Reason != vmm.Killed {
		t.Errorf("exit %+v, want killed", e)
	}
	list, err := os.ReadDir(c.RunDir)
	if err != nil || len(list) != 0 {
		t.Errorf("the run directory holds %v, %v", list, err)
	}
}

func disks(t *testing.T, g *Guest, scratch *os.File) {
	for i, serial := range []string{"root", "scratch.1", "junk"} {
		name := "vd" + string(rune('a'+i))
		if got := strings.TrimSpace(g.Ask(t, "cat /sys/block/%s/serial", name)); got != serial {
			t.Errorf("%s has serial %q, want %q", name, got, serial)
		}
	}
	if got := g.Ask(t, "head /dev/vda 10"); got != "root image" {
		t.Errorf("content %q", got)
	}
	if got := g.Ask(t, "size /dev/vdb"); got != "8388608" {
		t.Errorf("size %s", got)
	}
	if got := strings.TrimSpace(g.Ask(t, "cat /sys/block/vda/ro")); got != "1" {
		t.Errorf("read-only disk has ro=%s", got)
	}
	g.Refused(t, "not permitted", "put /dev/vda changed")
	g.Ask(t, "put /dev/vdb kept")
	g.Ask(t, "put /dev/vdc junk")
	b := make([]byte, 4)
	if _, err := scratch.ReadAt(b, 0); err != nil || string(b) != "kept" {
		t.Errorf("after a flush the file holds %q, %v", b, err)
	}
	if got := strings.TrimSpace(g.Ask(t, "cat /sys/block/vdb/queue/write_cache")); got != "write back" {
		t.Errorf("write cache %q: the guest would not flush", got)
	}
}

// shareTree makes host directories to share.
func shareTree(t *testing.T) string {
	dir := t.TempDir()
	for _, d := range []string{"rw", "ro/sub", "volume"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"rw/a", "ro/b", "ro/sub/c", "file", "secret"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("content of "+f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Links that lead out are the guest's to resolve, in its own root.
	if err := os.Symlink("../../secret", filepath.Join(dir, "rw/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// growing adds entries to a share of a running machine.
func growing(t *testing.T, v vmm.VM, g *Guest, host string) {
	ctx := t.Context()
	g.Ask(t, "mount grows /g")
	err := v.Share(ctx, "grows", vmm.ShareEntry{Name: "rw", HostPath: host + "/rw"})
	if os.Geteuid() != 0 {
		if err == nil || !strings.Contains(err.Error(), "user namespace") {
			t.Errorf("as an ordinary user: %v, want an error that names user namespaces", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Ask(t, "cat /g/rw/a"); got != "content of rw/a" {
		t.Errorf("file %q", got)
	}
	g.Ask(t, "write /g/rw/added fromguest")
	if b, err := os.ReadFile(host + "/rw/added"); err != nil || string(b) != "fromguest" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	for _, e := range []vmm.ShareEntry{{Name: "ro", HostPath: host + "/ro", ReadOnly: true}, {Name: "rofile", HostPath: host + "/file", File: true, ReadOnly: true}, {Name: "1.0/rw", HostPath: host + "/rw"}} {
		if err := v.Share(ctx, "grows", e); err != nil {
			t.Fatal(err)
		}
	}
	g.Refused(t, "read-only", "write /g/ro/sub/c x")
	g.Refused(t, "read-only", "write /g/rofile x")
	g.Refused(t, "read-only", "write /g/new x")
	if got := g.Ask(t, "cat /g/1.0/rw/a"); got != "content of rw/a" {
		t.Errorf("file of a nested entry: %q", got)
	}
	for what, e := range map[string]vmm.ShareEntry{
		"the same name":    {Name: "rw", HostPath: host + "/ro"},
		"a way out":        {Name: "..", HostPath: host + "/ro"},
		"a nested way out": {Name: "a/..", HostPath: host + "/ro"},
		"nothing":          {Name: "no", HostPath: host + "/nothing"},
		"a file, no dir":   {Name: "f", HostPath: host + "/file"},
		"a relative path":  {Name: "r", HostPath: "rw"},
	} {
		if err := v.Share(ctx, "grows", e); err == nil {
			t.Errorf("%s was added", what)
		}
	}
	for _, e := range []vmm.ShareEntry{{Name: "rofile", HostPath: host + "/file", File: true, ReadOnly: true}, {Name: "1.0/rw", HostPath: host + "/rw"}} {
		if err := v.Unshare(ctx, "grows", e); err != nil {
			t.Errorf("take %s away: %v", e.Name, err)
		}
		if err := v.Unshare(ctx, "grows", e); err == nil {
			t.Errorf("%s was taken away twice", e.Name)
		}
	}
	g.Refused(t, "no such file", "cat /g/rofile")
	g.Refused(t, "no such file", "cat /g/1.0/rw/a")
	if got := g.Ask(t, "cat /g/rw/a"); got != "content of rw/a" {
		t.Errorf("file of an entry that stays: %q", got)
	}
	if err := v.Share(ctx, "binds", vmm.ShareEntry{Name: "late", HostPath: host + "/rw"}); !errors.Is(err, vmm.ErrConfig) {
		t.Errorf("a share that does not grow: %v, want ErrConfig", err)
	}
}

func shares(t *testing.T, g *Guest, host string) {
	g.Ask(t, "mount binds /b")
	if got := g.Ask(t, "ls /b"); got != "file ro rofile rw" {
		t.Errorf("entries %q", got)
	}
	if got := g.Ask(t, "cat /b/rw/a"); got != "content of rw/a" {
		t.Errorf("file %q", got)
	}
	g.Ask(t, "write /b/rw/new fromguest")
	if b, err := os.ReadFile(host + "/rw/new"); err != nil || string(b) != "fromguest" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	if err := os.WriteFile(host+"/rw/late", []byte("fromhost"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := g.Ask(t, "cat /b/rw/late"); got != "fromhost" {
		t.Errorf("later file %q", got)
	}
	g.Refused(t, "read-only", "write /b/ro/new x")
	g.Refused(t, "read-only", "write /b/ro/sub/c x")
	g.Refused(t, "read-only", "remove /b/ro/b")
	g.Refused(t, "read-only", "write /b/new x")
	g.Ask(t, "write /b/file changed")
	if got := g.Ask(t, "cat /b/rofile"); got != "changed" {
		t.Errorf("file twice shared %q", got)
	}
	g.Refused(t, "read-only", "write /b/rofile x")
	g.Refused(t, "no such file", "cat /b/rw/link")
	g.Refused(t, "no such file", "cat /b/rw/../../secret")

	g.Ask(t, "mount volumes /v")
	g.Ask(t, "write /v/v/data x")
	g.Ask(t, "chown /v/v/data")
	if got := g.Ask(t, "stat /v/v/data"); got != "100644 33 44 1" {
		t.Errorf("mapped ownership: %s", got)
	}
	g.Ask(t, "mknod /v/v/null")
	if got := g.Ask(t, "stat /v/v/null"); !strings.HasPrefix(got, "20600 ") {
		t.Errorf("mapped device: %s", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(host+"/volume/null", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("on the host the device is mode %o, %v; want an ordinary file", st.Mode, err)
	}
	if err := unix.Stat(host+"/volume/data", &st); err != nil || int(st.Uid) != os.Geteuid() {
		t.Errorf("on the host the file belongs to %d, %v", st.Uid, err)
	}
	if os.Geteuid() == 0 {
		// Root's shares keep the owners that a guest sets, as with other engines.
		g.Ask(t, "chown /b/rw/new")
		if err := unix.Stat(host+"/rw/new", &st); err != nil || st.Uid != 33 || st.Gid != 44 {
			t.Errorf("owner on the host %d:%d, %v", st.Uid, st.Gid, err)
		}
		if err := os.Chmod(host+"/rw/new", 0o600); err != nil {
			t.Fatal(err)
		}
		g.Ask(t, "cat /b/rw/new")
		g.Refused(t, "not permitted", "mknod /b/rw/null")
	}
}

func network(t *testing.T, g *Guest, ours *os.File) {
	if got := strings.TrimSpace(g.Ask(t, "cat /sys/class/net/eth0/address")); got != "52:54:00:12:34:56" {
		t.Fatalf("address %q", got)
	}
	text := "experiment" + strings.Repeat(".", 60)
	g.Ask(t, "frame eth0 %s", text)
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	for {
		var head [4]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			t.Fatal(err)
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > 65536 {
			t.Fatalf("frame of %d bytes", n)
		}
		frame := make([]byte, n)
		if _, err := io.ReadFull(conn, frame); err != nil {
			t.Fatal(err)
		}
		// The guest's kernel sends frames of its own when the interface comes up.
		if bytes.Contains(frame, []byte(text)) {
			return
		}
	}
}

// bulk sends more than any buffer holds through the agent's connection, both ways
// at the same time.
func bulk(t *testing.T, g *Guest) {
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	if err := g.send("back %d", len(data)); err != nil {
		t.Fatal(err)
	}
	var sent sync.WaitGroup
	sent.Go(func() { g.conn.Write(data) })
	defer sent.Wait()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(g.r, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Error("it came back changed")
	}
	if _, err := g.receive(); err != nil {
		t.Error(err)
	}
}

func pause(t *testing.T, v vmm.VM, g *Guest) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 { // it is idempotent
		if err := v.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.send("echo awake"); err != nil {
		t.Fatal(err)
	}
	// A guest that runs would answer in a millisecond.
	v.Agent().SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if line, err := g.r.ReadString('\n'); err == nil {
		t.Errorf("a paused guest answered %q", line)
	}
	for range 2 {
		if err := v.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	v.Agent().SetReadDeadline(time.Now().Add(patience))
	if got, err := g.receive(); err != nil || got != "awake" {
		t.Errorf("after the pause: %q, %v", got, err)
	}
}

// ends tests every way in which a VM ends.
func (s suite) ends(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(t *testing.T, v vmm.VM, g *Guest)
		reason vmm.Reason
		says   string
	}{
		"poweroff":   {verb("poweroff"), vmm.PowerOff, "switched itself off"},
		"reboot":     {verb("reboot"), vmm.Reset, "rebooted"},
		"panic":      {verb("exit"), vmm.Panic, "Attempted to kill init"},
		"hung guest": {func(t *testing.T, v vmm.VM, g *Guest) { g.send("spin"); kill(t, v) }, vmm.Killed, "owner"},
		"paused":     {func(t *testing.T, v vmm.VM, g *Guest) { v.Pause(t.Context()); kill(t, v) }, vmm.Killed, "owner"},
		"outside": {func(t *testing.T, v vmm.VM, g *Guest) {
			if err := unix.Kill(v.Info().PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, vmm.Killed, "outside"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := base(t)
			v, g := Start(t, s.driver, config)
			if e := v.Exit(); e != (vmm.Exit{}) {
				t.Errorf("exit before the end: %+v", e)
			}
			c.end(t, v, g)
			select {
			case <-v.Done():
			case <-time.After(patience):
				t.Fatal("it goes on")
			}
			if e := v.Exit(); e.Reason != c.reason || !strings.Contains(e.Detail, c.says) {
				t.Errorf("exit %+v, want %s with %q", e, c.reason, c.says)
			}
			v.Agent().SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, v.Agent()); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the agent's connection is still open")
			}
			for _, f := range []func(context.Context) error{v.Pause, v.Resume} {
				if err := f(t.Context()); !errors.Is(err, vmm.ErrEnded) {
					t.Errorf("after the end: %v, want ErrEnded", err)
				}
			}
			kill(t, v)
			if err := unix.Kill(v.Info().PID, 0); err != unix.ESRCH {
				t.Errorf("process %d: %v, want none", v.Info().PID, err)
			}
		})
	}
}

func verb(name string) func(*testing.T, vmm.VM, *Guest) {
	return func(t *testing.T, v vmm.VM, g *Guest) {
		if err := g.send("%s", name); err != nil {
			t.Fatal(err)
		}
	}
}

// kill kills from several sides at once.
func kill(t *testing.T, v vmm.VM) {
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := v.Kill(); err != nil {
				t.Error("kill:", err)
			}
		})
	}
	all.Wait()
}

// rejected gives the monitor a kernel that is none.
func (s suite) rejected(t *testing.T) {
	before := openFiles(t)
	c := base(t)
	c.Kernel = tempFile(t, 0).Name()
	v, err := s.driver.Start(t.Context(), c)
	if err == nil {
		v.Kill()
		t.Fatal("started with an empty kernel")
	}
	if !errors.Is(err, vmm.ErrRejected) || !strings.Contains(err.Error(), "kernel") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q, want one readable line about the kernel", err)
	}
	if after := openFiles(t); after > before+1 { // the empty kernel
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func (s suite) cancelled(t *testing.T) {
	before := openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := s.driver.Start(ctx, base(t)); !errors.Is(err, context.Canceled) {
		if err == nil {
			v.Kill()
		}
		t.Errorf("error %v, want cancelled", err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
