package netns

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// space is a network namespace with a thread in it that does what the test asks.
type space struct {
	t    testing.TB
	file *os.File
	work chan func()
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t, work: make(chan func())}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		begun <- err
		for f := range s.work {
			f()
		}
	}()
	if err := <-begun; err != nil {
		close(s.work)
		t.Skip("no network namespace to be had here: ", err)
	}
	t.Cleanup(func() {
		close(s.work)
		s.file.Close()
	})
	s.run("ip", "link", "set", "lo", "up")
	return s
}

func (s *space) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

// run executes a command in the namespace and returns what it prints.
func (s *space) run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.try(name, args...)
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

func (s *space) try(name string, args ...string) (string, error) {
	var out []byte
	var err error
	s.do(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	return string(out), err
}

// ip executes ip(8) once for each line.
func (s *space) ip(lines string) {
	s.t.Helper()
	for line := range strings.Lines(lines) {
		if args := strings.Fields(line); len(args) > 0 {
			s.run("ip", args...)
		}
	}
}

// settle waits until the kernel has probed the addresses that it gives by itself.
func (s *space) settle() {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out := s.run("ip", "addr")
		if strings.Contains(out, "inet6 fe80:") && !strings.Contains(out, "tentative") {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the addresses are not ready:\n%s", out)
		}
	}
}

func (s *space) listen(address string) (l net.Listener) {
	s.t.Helper()
	var err error
	s.do(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	return l
}

func (s *space) dial(address string) (c net.Conn, err error) {
	s.do(func() { c, err = net.DialTimeout("tcp", address, patience) })
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
		s.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// join makes a veth pair: name in s, far in the other namespace.
func (s *space) join(name string, other *space, far string) {
	s.t.Helper()
	s.run("ip", "link", "add", name, "type", "veth", "peer", "name", far)
	s.do(func() {
		link, err := netlink.LinkByName(far)
		if err == nil {
			err = netlink.LinkSetNsFd(link, int(other.file.Fd()))
		}
		if err != nil {
			s.t.Error(err)
		}
	})
}

func take(t testing.TB, s *space) *Taken {
	t.Helper()
	taken, err := Take(s.file)
	if err != nil {
		if os.IsPermission(err) {
			t.Skip("no tap device to be had here: ", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := taken.Release(); err != nil {
			t.Error(err)
		}
	})
	return taken
}

// pair is a stream socket pair.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

// connect stands a namespace at the end of an interface, in a guest's place: its card has the interface's name and
// hardware address, and the two relays face each other until disconnect is called, or the test ends.
func connect(t testing.TB, guest *space, i *Interface) (disconnect func()) {
	t.Helper()
	var card *os.File
	guest.do(func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
			return
		}
		req, _ := unix.NewIfreq(i.Name)
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			t.Error(err)
		}
		card = os.NewFile(uintptr(fd), "card")
	})
	guest.run("ip", "link", "set", i.Name, "address", i.MAC, "mtu", fmt.Sprint(i.MTU), "up")
	a, b := pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- Relay(ctx, i.Tap, a) }()
	go func() { ended <- Relay(ctx, card, b) }()
	disconnect = sync.OnceFunc(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil && err != context.Canceled {
				t.Error(err)
			}
		}
		card.Close()
	})
	t.Cleanup(disconnect)
	return disconnect
}

// exchange sends some megabytes each way over one connection and compares their digests.
func exchange(t testing.TB, from, to *space, address string) {
	t.Helper()
	l := to.listen(address)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		h := md5.New()
		n, _ := io.Copy(h, io.LimitReader(c, int64(len(content()))))
		if n == int64(len(content())) {
			c.Write(h.Sum(nil))
			c.Write(content())
		}
	}()
	c, err := from.dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	data := content()
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	var got [md5.Size]byte
	if _, err := io.ReadFull(c, got[:]); err != nil || got != md5.Sum(data) {
		t.Errorf("there: %x, %v", got, err)
	}
	if back, err := io.ReadAll(c); err != nil || !bytes.Equal(back, data) {
		t.Errorf("and back: %d bytes, %v", len(back), err)
	}
}

const payload = 4 << 20

func content() []byte {
	size := payload
	if testing.Short() {
		size /= 16
	}
	return bytes.Repeat([]byte("0123456789abcde\n"), size/16)
}

const outsideLines = `
	addr add 10.88.0.1/16 dev up0
	addr add fd00:88::1/64 dev up0 nodad
	link set up0 up`

const boxLines = `
	link set eth0 address 02:aa:bb:cc:dd:01 mtu 1500
	addr add 10.88.0.7/16 broadcast 10.88.255.255 dev eth0
	addr add fd00:88::7/64 dev eth0 nodad
	link set eth0 up
	route add default via 10.88.0.1
	-6 route add default via fd00:88::1`

// What stands at the end of the tap has the interface's traffic, both ways and whole, and the
// namespace's own stack none of it.
func TestTraffic(t *testing.T) {
	outside, box, guest := newSpace(t), newSpace(t), newSpace(t)
	outside.join("up0", box, "eth0")
	outside.ip(outsideLines)
	box.ip(boxLines)
	box.settle()
	before := box.run("ip", "-d", "addr") + box.run("ip", "route", "show", "table", "all") + box.run("tc", "qdisc")
	box.listen(":7") // nobody shall come here
	taken := take(t, box)
	if len(taken.Interfaces) != 1 || taken.Interfaces[0].Name != "eth0" || taken.Interfaces[0].MAC != "02:aa:bb:cc:dd:01" {
		t.Fatalf("%+v", taken.Interfaces)
	}
	connect(t, guest, &taken.Interfaces[0])

	// Without addresses in the guest nobody answers: neither by ARP, nor by neighbour discovery.
	for _, a := range []string{"10.88.0.7", "fd00:88::7"} {
		if out, err := outside.try("ping", "-c", "1", "-W", "1", a); err == nil {
			t.Errorf("the host answers for %s:\n%s", a, out)
		}
	}
	guest.ip(`
		addr add 10.88.0.7/16 dev eth0
		addr add fd00:88::7/64 dev eth0 nodad`)
	// What is sent from now on is answered by the guest, whose port 7 is closed and whose TCP answers so.
	outside.ip("neigh flush all")
	for _, a := range []string{"10.88.0.7:7", "[fd00:88::7]:7"} {
		if _, err := outside.dial(a); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", a, err)
		}
	}
	for _, a := range []string{"10.88.0.7:9", "[fd00:88::7]:9"} {
		exchange(t, outside, guest, a)
	}
	for _, a := range []string{"10.88.0.1:9", "[fd00:88::1]:9"} {
		exchange(t, guest, outside, a)
	}
	if rst := box.run("cat", "/proc/net/snmp"); strings.Contains(rst, "Tcp:") {
		// The namespace's own TCP has neither received nor sent a segment.
		fields := strings.Fields(rst[strings.LastIndex(rst, "Tcp:"):])
		if in, out := fields[10], fields[11]; in != "0" || out != "0" {
			t.Errorf("the host's TCP: %s in, %s out", in, out)
		}
	}
	if err := taken.Release(); err != nil {
		t.Fatal(err)
	}
	after := box.run("ip", "-d", "addr") + box.run("ip", "route", "show", "table", "all") + box.run("tc", "qdisc")
	if before != after {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if c, err := outside.dial("10.88.0.7:7"); err != nil {
		t.Errorf("after the release: %v", err)
	} else {
		c.Close()
	}
}
