package network

import "time"

// What a hostile guest can use of the host is bounded by these. With all of them exhausted at once the
// stack holds in the order of 250 MB; an idle one holds less than 2 MB.
const (
	// DefaultMaxConnections is the bound of TCP connections, see Config.MaxConnections. Each costs one file
	// descriptor, two goroutines and its buffers.
	DefaultMaxConnections = 1024
	// DefaultMaxSessions is the bound of UDP sessions, see Config.MaxSessions.
	DefaultMaxSessions = 1024

	maxDialing     = 128              // outbound TCP connections that wait for the far end
	dialTimeout    = 30 * time.Second // of one outbound TCP connection
	handshakeLimit = 10 * time.Second // for the guest's part in a connection that it asked for
	wakeInterval   = 10 * time.Millisecond
	knockLimit     = 20 * time.Second // of a published port's connection to the guest

	// roomyConnections get roomyBuffer bytes of send and receive buffer each in the stack, which fast
	// transfers need; the connections beyond get tightBuffer.
	roomyConnections = 32
	roomyBuffer      = 1 << 20
	tightBuffer      = 64 << 10

	acceptRetry = 100 * time.Millisecond // after an accept that failed for want of descriptors

	lingerTimeout   = 30 * time.Second       // of a closed connection whose last bytes the guest does not take
	timeWaitTimeout = 200 * time.Millisecond // nothing is reordered on this link

	udpIdle      = 90 * time.Second // after which a session that was answered is forgotten
	udpUnreplied = 30 * time.Second // the same for one never answered; ping has sessions, too

	maxQueries     = 64  // DNS queries at once
	queriesPerSec  = 500 // DNS queries a second, on average
	queryBurst     = 1000
	queryTimeout   = 3 * time.Second // of one upstream server
	maxQueryBytes  = 1232            // over UDP, and as good as any over TCP: a question is short
	dnsIdleTimeout = 10 * time.Second

	queueBytes = 8 << 20 // of frames waiting for the guest to take them
)
