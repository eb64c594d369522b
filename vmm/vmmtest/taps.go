package vmmtest

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/vmm"
)

// tap is a tap device in a network namespace that nobody else is in.
type tap struct {
	file *os.File
	// seen receives what comes out of the device on its other side.
	seen *os.File
}

// newTap skips the test where no tap device is to be had.
func newTap(t *testing.T) *tap {
	t.Helper()
	type result struct {
		tap *tap
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		p, err := func() (*tap, error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, err
			}
			p := &tap{file: os.NewFile(uintptr(fd), "tap")}
			ifr, err := unix.NewIfreq("tap0")
			if err != nil {
				return nil, err
			}
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
				return nil, err
			}
			const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the network's byte order
			sock, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
			if err != nil {
				return nil, err
			}
			p.seen = os.NewFile(uintptr(sock), "packets")
			ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
			return p, unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, ifr)
		}()
		made <- result{p, err}
	}()
	r := <-made
	if errors.Is(r.err, unix.EPERM) || errors.Is(r.err, unix.EACCES) || errors.Is(r.err, unix.ENOENT) {
		t.Skip("no tap device to be had here: ", r.err)
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() {
		r.tap.file.Close()
		r.tap.seen.Close()
	})
	return r.tap
}

// receives has the guest send a frame by one of its interfaces until it is on the other side. One is not enough: what is sent
// by a card that is up but has no carrier yet is lost without an error.
func (p *tap) receives(t *testing.T, g *Guest, device, text string) {
	t.Helper()
	text += strings.Repeat(".", 60)
	buf := make([]byte, 4096)
	end := time.Now().Add(patience)
	var next time.Time
	for {
		if now := time.Now(); now.After(next) {
			g.Ask(t, "frame %s %s", device, text)
			next = now.Add(100 * time.Millisecond)
			p.seen.SetReadDeadline(next)
		}
		n, err := p.seen.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end) {
			continue
		}
		if err != nil {
			t.Fatalf("wait for a frame from %s: %v", device, err)
		}
		if bytes.Contains(buf[:n], []byte(text)) {
			return
		}
	}
}

// taps are the cards of a VM that is frozen, cloned and saved, each time another.
func (s suite) taps(t *testing.T) {
	nic := func(p *tap) *vmm.NIC { return &vmm.NIC{MAC: "52:54:00:00:00:01", Tap: p.file} }
	frozen, state := s.template(t, *nic(newTap(t)))
	clone := func(p *tap) (vmm.VM, *Guest) {
		t.Helper()
		state, err := os.Open(state.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer state.Close()
		c := frozen
		c.Frozen, c.MemoryFile, c.RunDir, c.NIC = &vmm.Frozen{Memory: c.MemoryFile, State: state}, "", t.TempDir(), nic(p)
		return Start(t, s.driver, c)
	}
	p := newTap(t)
	v, g := clone(p)
	p.receives(t, g, "eth0", "cloned")
	saved := s.saveVM(t, v)
	if !saved.Tap {
		t.Error("what was saved does not know of its tap")
	}
	c := frozen
	c.Saved, c.MemoryFile, c.RunDir, c.NIC = saved, "", t.TempDir(), &vmm.NIC{MAC: "52:54:00:00:00:01"}
	if _, err := s.driver.Start(t.Context(), c); !errors.Is(err, vmm.ErrConfig) {
		t.Errorf("a saved machine without its tap: %v", err)
	}
	for _, name := range []string{"once", "again"} {
		p := newTap(t)
		c.RunDir, c.NIC = t.TempDir(), nic(p)
		v, g := Start(t, s.driver, c)
		p.receives(t, g, "eth0", name)
		if err := v.Kill(); err != nil {
			t.Error(err)
		}
	}
}
