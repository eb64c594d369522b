package network

import (
	"context"
	"net"
	"net/netip"
	"syscall"
)

// dialHost opens a socket of the host to an address that policy has passed. The network is "tcp" or "udp".
func dialHost(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if network == "udp" {
		d.Control = noBroadcast
	}
	if to.Addr().Is4() {
		return d.DialContext(ctx, network+"4", to.String())
	}
	return d.DialContext(ctx, network+"6", to.String())
}

// noBroadcast undoes what the net package does to every UDP socket: the guest must not reach all hosts of
// a network of the host with one datagram.
func noBroadcast(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_BROADCAST, 0)
	}); e != nil {
		return e
	}
	return err
}
