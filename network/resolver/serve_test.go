package resolver

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"manis/api/names"
	"manis/network/netns"
)

var server = netip.MustParseAddr("127.0.0.11")

// space is a network namespace whose loopback is up.
func space(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		t.Skip("no network namespace to be had here: ", r.err)
	}
	t.Cleanup(func() { r.ns.Close() })
	err := netns.Do(r.ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		lo.SetUint16(unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.ns
}

// echo answers every message by UDP and TCP with the protocol's name and itself, and what is to be kept silent about not.
func echo(t *testing.T, ns *os.File) {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	err := netns.Do(ns, func() (err error) {
		at := netip.AddrPortFrom(server, port).String()
		if udp, err = net.ListenPacket("udp", at); err == nil {
			tcp, err = net.Listen("tcp", at)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		b := make([]byte, names.MaxMessage)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			if !bytes.HasPrefix(b[:n], []byte("silence")) {
				udp.WriteTo(append([]byte("udp "), b[:n]...), from)
			}
		}
	}()
	go func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var length [2]byte
				io.ReadFull(conn, length[:])
				b := make([]byte, binary.BigEndian.Uint16(length[:]))
				io.ReadFull(conn, b)
				b = append([]byte("tcp "), b...)
				conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
			}()
		}
	}()
}

func TestPresent(t *testing.T) {
	ns := space(t)
	if Present(ns, server) {
		t.Error("somebody answers where nobody is")
	}
	echo(t, ns)
	if !Present(ns, server) {
		t.Error("nobody answers where somebody is")
	}
}

// Every query has its answer, in whatever order, also more than are asked at once; an unheard one does not stop the others.
func TestServe(t *testing.T) {
	ns := space(t)
	echo(t, ns)
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, ns, server, theirs) }()
	const many = 3 * maxQueries
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := range uint32(many) {
			names.Write(ours, &names.Frame{Number: n, TCP: n%2 == 1, Message: fmt.Appendf(nil, "query %d", n)})
		}
		names.Write(ours, &names.Frame{Number: many, Message: []byte("silence")})
		names.Write(ours, &names.Frame{Number: many + 1, TCP: true, Message: bytes.Repeat([]byte("x"), 60000)})
	})
	seen := map[uint32]bool{}
	for len(seen) < many+1 {
		f, err := names.Read(ours)
		if err != nil {
			t.Fatal(err)
		}
		protocol := map[bool]string{false: "udp", true: "tcp"}[f.TCP]
		want := fmt.Appendf(nil, "%s query %d", protocol, f.Number)
		if f.Number == many+1 {
			want = append([]byte("tcp "), bytes.Repeat([]byte("x"), 60000)...)
		}
		if seen[f.Number] || !bytes.Equal(f.Message, want) {
			t.Errorf("%d: %.40q, want %.40q", f.Number, f.Message, want)
		}
		seen[f.Number] = true
	}
	writer.Wait()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Who asks where nobody answers is told so.
func TestNobody(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go Serve(t.Context(), space(t), server, theirs)
	for n, tcp := range []bool{false, true} {
		if err := names.Write(ours, &names.Frame{Number: uint32(n), TCP: tcp, Message: []byte("query")}); err != nil {
			t.Fatal(err)
		}
		if f, err := names.Read(ours); err != nil || len(f.Message) != 0 {
			t.Errorf("%+v, %v", f, err)
		}
	}
}

func TestBadStream(t *testing.T) {
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	ns := space(t)
	go func() { served <- Serve(t.Context(), ns, server, theirs) }()
	ours.Write([]byte{0, 0, 0, 1, 9, 0, 0})
	if err := <-served; err == nil {
		t.Error("a frame of no protocol is taken for one")
	}
}
