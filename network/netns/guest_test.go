package netns

import (
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"net"
	"net/http"
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

// world is what the tests with a real guest share.
type world struct {
	dir, kernel, initramfs, rootfs string
	verity                         *agent.Verity
}

var prepare = sync.OnceValues(func() (w world, err error) {
	guest := "../../guest/image"
	if dir := os.Getenv(place.GuestVariable); dir != "" {
		guest = dir
	}
	w = world{kernel: filepath.Join(guest, "vmlinuz"), initramfs: filepath.Join(guest, "initramfs")}
	for _, f := range []string{w.kernel, w.initramfs} {
		if _, err := os.Stat(f); err != nil {
			return w, err
		}
	}
	if w.dir, err = os.MkdirTemp("", "manis-netns-"); err != nil {
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
	release() // the store is this process's own
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

// guest is a real one.
type guest struct {
	t   *testing.T
	box *sandbox.Sandbox
	n   int
}

// boot starts a machine with the network that was taken, its cards connected by connect.
func boot(t *testing.T, taken *Taken, connect func(*sandbox.Config)) *guest {
	t.Helper()
	w, err := prepare()
	if err != nil {
		t.Skipf("no guest or image here: %v", err)
	}
	file, err := os.Open(w.rootfs)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cfg := sandbox.Config{
		Driver: qemu.New(""),
		VM: vmm.Config{
			Kernel: w.kernel, Initrd: w.initramfs, MemoryBytes: 256 << 20, Accel: vmm.AccelTCG,
			Disks: []vmm.Disk{{Serial: "root", File: file, ReadOnly: true}},
		},
		Setup: &agent.SetupRequest{Hostname: "box", Network: taken.Guest},
	}
	connect(&cfg)
	box, err := sandbox.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Kill() })
	return &guest{t: t, box: box}
}

// sh runs a shell's script in the guest and returns what it prints.
func (g *guest) sh(script string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w, _ := prepare()
	g.n++
	r, err := spec.Build(&container.Config{
		ID: fmt.Sprint("c", g.n), Hostname: "box",
		Process: container.Process{Args: []string{"sh", "-c", "exec 2>&1; " + script}},
		Network: container.Network{Mode: "none"},
	}, spec.Environment{RootDisk: "root", Verity: w.verity})
	if err != nil {
		g.t.Fatal(err)
	}
	stream, token, err := g.box.Stream()
	if err != nil {
		g.t.Fatal(err)
	}
	defer stream.Close()
	r.Process.Stdout = token
	if _, err := g.box.CreateContainer(ctx, r); err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.box.StartContainer(ctx, &agent.StartContainerRequest{Id: r.Id}); err != nil {
		g.t.Fatal(err)
	}
	out, err := io.ReadAll(stream)
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.box.Wait(ctx, r.Id, ""); err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.box.Agent().RemoveContainer(ctx, &agent.ContainerRef{Id: r.Id}); err != nil {
		g.t.Error(err)
	}
	return string(out)
}

// follow gives the guest what is in the namespace now.
func (g *guest) follow(taken *Taken) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, changed, err := taken.Follow()
	if err != nil || !changed {
		g.t.Fatalf("the namespace has changed: %v, %v", changed, err)
	}
	for _, i := range c.Added {
		if err := g.box.VM().Plug(ctx, vmm.NIC{MAC: i.Card, Tap: i.Tap}); err != nil {
			g.t.Fatal(err)
		}
	}
	if _, err := g.box.Agent().Connect(ctx, taken.Guest); err != nil {
		g.t.Fatal(err)
	}
	for _, i := range c.Removed {
		if err := g.box.VM().Unplug(ctx, i.Card); err != nil {
			g.t.Fatal(err)
		}
	}
}

// A guest reaches and is reached under the addresses of the namespace, with whole data, by whatever its cards are
// connected with.
func TestGuest(t *testing.T) {
	for name, connect := range map[string]func(*Taken) func(*sandbox.Config){
		"relay": func(taken *Taken) func(*sandbox.Config) {
			return func(c *sandbox.Config) {
				i := &taken.Interfaces[0]
				c.MAC = i.MAC
				c.Attach = func(ctx context.Context, conn net.Conn) error { return Relay(ctx, i.Tap, conn) }
			}
		},
		"taps": func(taken *Taken) func(*sandbox.Config) {
			return func(c *sandbox.Config) {
				i := taken.Interfaces[0]
				c.VM.NIC = &vmm.NIC{MAC: i.Card, Tap: i.Tap}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			outside, box := newSpace(t), newSpace(t)
			outside.join("up0", box, "eth0")
			outside.ip(outsideLines)
			box.ip(boxLines)
			taken := take(t, box)
			g := boot(t, taken, connect(taken))
			if name == "taps" {
				outside.join("up1", box, "podman7")
				outside.ip("addr add 10.89.0.1/24 dev up1\nlink set up1 up")
				// With the hardware address of the first one, as VLANs of one interface have it.
				box.ip("addr add 10.89.0.7/24 dev podman7\nlink set podman7 mtu 9000 address 02:aa:bb:cc:dd:01 up")
				g.follow(taken)
			}
			outside.serve(t)

			sum := fmt.Sprintf("%x  -\n", md5.Sum(content()))
			hosts := []string{"10.88.0.1", "[fd00:88::1]"}
			if name == "taps" {
				hosts = append(hosts, "10.89.0.1")
				if out := g.sh("ip link show podman7"); !strings.Contains(out, "mtu 9000") || !strings.Contains(out, taken.Interfaces[1].MAC) {
					t.Error(out)
				}
			}
			for _, host := range hosts {
				if got := g.sh("wget -q -O - http://" + host + "/down | md5sum"); got != sum {
					t.Errorf("from %s: %q, want %q", host, got, sum)
				}
				plain := strings.Trim(host, "[]")
				script := "yes 0123456789abcde | head -c " + fmt.Sprint(len(content())) + " >/tmp/x; wc -c </tmp/x; nc " + plain + " 99 </tmp/x"
				if got := g.sh(script); got != fmt.Sprintln(len(content()))+sum {
					t.Errorf("to %s: %q, want %q", host, got, sum)
				}
			}
			// The guest is asked: by a connection, and by one that it refuses.
			answered := make(chan string, 1)
			go func() { answered <- g.sh("nc -l -p 9 | md5sum") }()
			var c net.Conn
			for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
				var err error
				if c, err = outside.dial("10.88.0.7:9"); err == nil {
					break
				}
				if !strings.Contains(err.Error(), "refused") || time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
			c.Write(content())
			c.Close()
			if got := <-answered; got != sum {
				t.Errorf("sent to the guest: %q, want %q", got, sum)
			}
		})
	}
}

// serve answers in the namespace: HTTP requests with the content, and what is sent to port 99 with its digest.
func (s *space) serve(t *testing.T) {
	t.Helper()
	l := s.listen(":80")
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(content()) })}
	go web.Serve(l)
	t.Cleanup(func() { web.Close() })
	raw := s.listen(":99")
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			h := md5.New()
			io.Copy(h, io.LimitReader(c, int64(len(content()))))
			fmt.Fprintf(c, "%x  -\n", h.Sum(nil))
			c.Close()
		}
	}()
}
