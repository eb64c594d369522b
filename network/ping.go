package network

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
)

type pings struct{}

func (p *pings) closeAll() {}

func (s *Stack) ping(proto tcpip.NetworkProtocolNumber, packet []byte) {}

var _ netip.Addr
