package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"manis/network/egress"
)

// nicID is the only network card of the stack.
const nicID tcpip.NICID = 1

// Stack is one sandbox's network. New makes it and binds the published ports, so that a clash is known
// before a VM is started; Serve runs it for as long as a VM is connected, and may be called again for
// another; Close frees everything.
type Stack struct {
	config Config
	guest  Addresses
	gate   gate
	link   *link
	stack  *stack.Stack

	tcp       *tcp.Forwarder
	slots     chan struct{} // one for each TCP connection
	dial      func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	sessions  sessions // UDP
	names     *names
	listeners []listener

	ctx    context.Context // ends at Close
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	serving  bool
	epoch    context.Context // ends with the VM that is or will be connected
	endEpoch context.CancelFunc
	work     sync.WaitGroup // every goroutine of this package
}

// ErrClosed is returned by Serve after Close.
var ErrClosed = errors.New("network stack is closed")

// New makes a stack and binds the published ports. The context bounds only New itself. Errors of ports wrap
// *PortError.
func New(ctx context.Context, config Config) (*Stack, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Stack{
		config: config,
		guest:  config.addresses(),
		link:   newLink(config.MTU),
		slots:  make(chan struct{}, config.MaxConnections),
		dial:   dialHost,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.epoch, s.endEpoch = context.WithCancel(s.ctx)
	s.gate = gate{
		policy: policy{
			hostLoopback: config.AllowHostLoopback,
			linkLocal:    config.AllowLinkLocal,
			subnets:      []netip.Prefix{config.Subnet, config.Subnet6},
			gateways:     []netip.Addr{s.guest.Gateway4, s.guest.Gateway6},
			egress:       egress.NewGuard(config.Egress),
		},
		mac:      [6]byte(config.MAC),
		gateway:  [6]byte(DefaultGatewayMAC),
		guest4:   s.guest.IPv4.Addr(),
		gateway4: s.guest.Gateway4,
		guest6:   s.guest.IPv6.Addr(),
		gateway6: s.guest.Gateway6,
	}
	s.sessions.init(config.MaxSessions)
	if s.names, err = newNames(config, &s.gate.policy); err != nil {
		return nil, err
	}
	if len(config.DNS) == 0 && len(config.Search) == 0 {
		s.guest.Search = s.names.search()
	}
	if err := s.newStack(); err != nil {
		return nil, fmt.Errorf("start network stack: %w", err)
	}
	if err := s.publish(ctx); err != nil {
		s.Close()
		return nil, err
	}
	s.start(s.sweepSessions)
	return s, nil
}

// newStack wires the TCP/IP stack to the link and to the forwarders. There is no route but to the guest and
// no listening endpoint: what is served on the gateway's address is what the forwarders serve there.
func (s *Stack) newStack() error {
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := s.stack.CreateNIC(nicID, s.link); err != nil {
		return errors.New(err.String())
	}
	gateways := []netip.Addr{s.guest.Gateway4}
	if s.guest.Gateway6.IsValid() {
		gateways = append(gateways, s.guest.Gateway6)
	}
	var routes []tcpip.Route
	for _, a := range gateways {
		addr, proto := stackAddr(a)
		if err := s.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol:          proto,
			AddressWithPrefix: addr.WithPrefix(),
		}, stack.AddressProperties{}); err != nil {
			return errors.New(err.String())
		}
		guest := s.guest.IPv4.Addr()
		if a.Is6() {
			guest = s.guest.IPv6.Addr()
		}
		dst, _ := stackAddr(guest)
		routes = append(routes, tcpip.Route{Destination: dst.WithPrefix().Subnet(), NIC: nicID})
	}
	s.stack.SetRouteTable(routes)
	// The stack takes packets for any address and answers from any: to the guest it is the whole world.
	s.stack.SetPromiscuousMode(nicID, true)
	s.stack.SetSpoofing(nicID, true)

	timeWait := tcpip.TCPTimeWaitTimeoutOption(timeWaitTimeout)
	linger := tcpip.TCPLingerTimeoutOption(lingerTimeout)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tightBuffer, Max: roomyBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tightBuffer, Max: roomyBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&timeWait, &linger, &receive, &send} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errors.New(err.String())
		}
	}
	s.tcp = tcp.NewForwarder(s.stack, tightBuffer, maxDialing, s.forwardTCP)
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, s.tcp.HandlePacket)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, s.forwardUDP)
	return nil
}

// Guest returns what the agent has to configure.
func (s *Stack) Guest() Addresses { return s.guest }

// Stats returns the link's counters.
func (s *Stack) Stats() Stats {
	c := &s.link.stats
	return Stats{
		ReceivedBytes: c.rxBytes.Load(), ReceivedFrames: c.rxFrames.Load(),
		SentBytes: c.txBytes.Load(), SentFrames: c.txFrames.Load(),
		Dropped: c.dropped.Load(), Refused: c.refused.Load(),
	}
}

// Serve moves frames between conn, the stream that QEMU has the other end of, and the stack. It takes over
// conn and closes it. It returns nil when QEMU is gone, the error of ctx when that ends first, ErrClosed
// after Close, and any other error when what comes over conn is not QEMU's framing. Only one call can run at
// a time.
func (s *Stack) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	if err := s.beginServe(); err != nil {
		return err
	}
	defer s.endServe()

	pumping, cancel := context.WithCancel(ctx)
	defer cancel()
	// Reads and writes of the connection end when it is closed, whoever ends first.
	defer context.AfterFunc(s.ctx, cancel)()
	defer context.AfterFunc(pumping, func() { conn.Close() })()

	writer := make(chan struct{})
	go func() {
		defer close(writer)
		defer cancel()
		s.link.pump(pumping, conn, DefaultGatewayMAC, s.config.MAC)
	}()
	err := s.receive(conn)
	cancel()
	<-writer
	switch {
	case s.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, new(*FramingError)):
		return fmt.Errorf("receive from the VM's network card: %w", err)
	}
	return nil
}

func (s *Stack) beginServe() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.serving {
		return errors.New("a VM is connected to this network stack already")
	}
	s.serving = true
	s.work.Add(1)
	return nil
}

// endServe breaks off the connections of the VM that is gone: the next one knows nothing of them.
func (s *Stack) endServe() {
	s.mu.Lock()
	s.serving = false
	s.endEpoch()
	s.epoch, s.endEpoch = context.WithCancel(s.ctx)
	s.mu.Unlock()
	s.sessions.closeAll()
	s.link.drain()
	s.work.Done()
}

func (s *Stack) epochContext() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// receive handles the guest's frames, one at a time: a guest that sends faster than the stack takes them
// finds its card busy.
func (s *Stack) receive(r io.Reader) error {
	frames := newFrameReader(r)
	c := &s.link.stats
	for {
		frame, err := frames.next()
		if err != nil {
			return err
		}
		c.rxFrames.Add(1)
		c.rxBytes.Add(uint64(frame.Size()))
		v, proto, reply := s.gate.inspect(frame.AsSlice())
		switch v {
		case pass:
			s.link.deliver(proto, frame)
			continue
		case answer:
			s.link.send(proto, reply)
		case refuse:
			c.refused.Add(1)
			s.link.send(proto, reply)
		case ping:
			s.ping(proto, frame.AsSlice()[ethernetBytes:])
		default:
			c.dropped.Add(1)
		}
		frame.Release()
	}
}

// start runs f in a goroutine that Close waits for. It reports false, and does not run f, after Close.
func (s *Stack) start(f func()) bool {
	if !s.enter() {
		return false
	}
	go func() {
		defer s.work.Done()
		f()
	}()
	return true
}

// enter makes Close wait for the caller until it calls s.work.Done, or reports that it is too late.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

// Close ends Serve, frees the published ports, ends all connections and waits for every goroutine. Calling
// it again does nothing.
func (s *Stack) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.work.Wait()
		return nil
	}
	s.closed = true
	s.mu.Unlock()

	s.cancel()
	for _, l := range s.listeners {
		l.close()
	}
	s.sessions.closeAll()
	s.work.Wait()
	s.stack.Close()
	s.stack.Wait()
	s.link.drain()
	return nil
}

// isGuest reports whether a is one of the guest's addresses.
func (s *Stack) isGuest(a netip.Addr) bool {
	return a == s.gate.guest4 || a == s.gate.guest6
}
