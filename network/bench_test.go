package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
)

// BenchmarkThroughput moves bytes between a socket of the host and one of the guest; the guest's side of the
// work, a second TCP stack in the same process, is in the numbers as well.
func BenchmarkThroughput(b *testing.B) {
	for _, mtu := range []int{1500, 4000, 9000, 16000, 32000, DefaultMTU} {
		for _, up := range []bool{true, false} {
			name := "to guest"
			if up {
				name = "from guest"
			}
			b.Run(fmt.Sprintf("mtu %d/%s", mtu, name), func(b *testing.B) {
				s, g := boot(b, Config{AllowHostLoopback: true, MTU: mtu})
				at, l, _ := outside(b, "tcp", s.Guest().Gateway4)
				accepted := make(chan net.Conn, 1)
				go func() {
					c, err := l.Accept()
					if err == nil {
						accepted <- c
					}
				}()
				src := g.mustDial(at)
				dst := <-accepted
				if !up {
					src, dst = dst, src
				}
				measure(b, src, dst)
			})
		}
	}
}

// measure times how fast bytes get from src to dst.
func measure(b *testing.B, src, dst net.Conn) {
	defer src.Close()
	defer dst.Close()
	const chunk = 1 << 20
	b.SetBytes(chunk)
	go func() {
		buf := make([]byte, chunk)
		for {
			if _, err := src.Write(buf); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	b.ResetTimer()
	for range b.N {
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(dst, chunk), buf); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
}

// BenchmarkConnect opens, uses and closes a connection from the guest.
func BenchmarkConnect(b *testing.B) {
	s, g := boot(b, Config{AllowHostLoopback: true})
	at, l, _ := outside(b, "tcp", s.Guest().Gateway4)
	go echoTCP(l)
	for range b.N {
		roundTrip(b, g, at)
	}
}

func roundTrip(b *testing.B, g *guest, at netip.AddrPort) {
	c := g.mustDial(at)
	defer c.Close()
	var buf [4]byte
	if _, err := c.Write([]byte("ping")); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf[:]); err != nil {
		b.Fatal(err)
	}
}
