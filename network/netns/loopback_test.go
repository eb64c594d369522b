package netns

import (
	"net"
	"os"
	"testing"
)

// TestLoopback connects to ports of a namespace at which nobody listens.
func TestLoopback(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	own := newSpace(t).file
	l, err := NewLoopback(own)
	if err != nil {
		t.Skip("no programs of the kind sk_lookup here: ", err)
	}
	for _, port := range []uint16{1, 80, 65535} {
		var conn net.Conn
		if err := Do(own, func() (err error) {
			conn, err = net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		got, at, err := l.Accept()
		if err != nil || at != port {
			t.Errorf("accepted at port %d, want %d: %v", at, port, err)
		}
		conn.Close()
		got.Close()
	}
	refused := func(ns *os.File, ip net.IP) {
		t.Helper()
		Do(ns, func() error {
			if conn, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: ip, Port: 1}); err == nil {
				conn.Close()
				t.Errorf("somebody listens at %s", ip)
			}
			return nil
		})
	}
	refused(own, net.IPv4(127, 0, 0, 11)) // an engine's name server may be there
	refused(ns, net.IPv4(127, 0, 0, 1))
	l.Close()
	refused(own, net.IPv4(127, 0, 0, 1))
}
