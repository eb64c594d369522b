package network

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is the network card of the stack, as the stack sees it: frames for the guest wait in a bounded queue
// and are dropped when it is full, as on a wire. There is one station on the link, so addresses need no
// resolution: every frame goes to the guest's Ethernet address.
type link struct {
	mtu   uint32
	queue chan *stack.PacketBuffer // never closed: Serve calls come and go
	stats counters

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

var _ stack.LinkEndpoint = (*link)(nil)

// counters count what went over the link.
type counters struct {
	rxBytes, rxFrames, txBytes, txFrames, dropped, refused atomic.Uint64
}

// Stats says what went over the link since New. Received is from the guest, Sent is to the guest.
type Stats struct {
	ReceivedBytes, ReceivedFrames uint64
	SentBytes, SentFrames         uint64
	Dropped                       uint64 // frames from the guest that were malformed, spoofed or of no use
	Refused                       uint64 // packets to destinations that are not allowed
}

func newLink(mtu int) *link {
	return &link{
		mtu:   uint32(mtu),
		queue: make(chan *stack.PacketBuffer, min(1024, max(64, queueBytes/mtu))),
	}
}

// send queues a whole packet, without Ethernet header, for the guest.
func (l *link) send(proto tcpip.NetworkProtocolNumber, packet []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	p.NetworkProtocolNumber = proto
	l.enqueue(p)
}

// enqueue takes over the caller's reference.
func (l *link) enqueue(p *stack.PacketBuffer) bool {
	select {
	case l.queue <- p:
		return true
	default:
		p.DecRef()
		return false
	}
}

// drain forgets what waits for a guest that is gone.
func (l *link) drain() {
	for {
		select {
		case p := <-l.queue:
			p.DecRef()
		default:
			return
		}
	}
}

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range pkts.AsSlice() {
		if !l.enqueue(p.Clone()) {
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return pkts.Len(), nil
}

// deliver hands an inspected frame to the stack and takes over the view.
func (l *link) deliver(proto tcpip.NetworkProtocolNumber, frame *buffer.View) {
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	if d == nil {
		frame.Release()
		return
	}
	frame.TrimFront(ethernetBytes)
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(frame)})
	d.DeliverNetworkPacket(proto, p)
	p.DecRef()
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	l.dispatcher = d
	l.mu.Unlock()
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// Capabilities implements stack.NetworkLinkEndpoint. A socket pair does not corrupt, so checksums of the
// guest are not verified; ours are computed, for the guest verifies them.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

// batch is the most frames that go out with one write.
const batch = 32

// pump writes queued packets as frames until ctx ends or the guest's side fails. It owns no goroutine.
func (l *link) pump(ctx context.Context, w io.Writer, src, dst net.HardwareAddr) error {
	const prefix = lengthBytes + ethernetBytes
	var (
		heads   [batch][prefix]byte
		packets [batch]*stack.PacketBuffer
		pieces  = make(net.Buffers, 0, 4*batch)
	)
	for i := range heads {
		copy(heads[i][lengthBytes:], dst)
		copy(heads[i][lengthBytes+6:], src)
	}
	for {
		var n int
		select {
		case <-ctx.Done():
			return ctx.Err()
		case packets[0] = <-l.queue:
			n = 1
		}
	gather:
		for n < batch {
			select {
			case packets[n] = <-l.queue:
				n++
			default:
				break gather
			}
		}
		pieces = pieces[:0]
		bytes := 0
		for i, p := range packets[:n] {
			head := heads[i][:]
			binary.BigEndian.PutUint32(head, uint32(ethernetBytes+p.Size()))
			binary.BigEndian.PutUint16(head[prefix-2:], uint16(p.NetworkProtocolNumber))
			pieces = append(append(pieces, head), p.AsSlices()...)
			bytes += ethernetBytes + p.Size()
		}
		rest := pieces // WriteTo consumes its receiver; pieces keeps the array
		_, err := rest.WriteTo(w)
		for i, p := range packets[:n] {
			p.DecRef()
			packets[i] = nil
		}
		clear(pieces)
		if err != nil {
			return err
		}
		l.stats.txFrames.Add(uint64(n))
		l.stats.txBytes.Add(uint64(bytes))
	}
}
