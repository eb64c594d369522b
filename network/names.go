package network

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/time/rate"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"manis/network/egress"
)

const (
	dnsPort    = 53
	maxServers = 3 // as in resolv.conf(5)
)

// names answers the guest's DNS queries at the gateway's address, by asking the configured servers. The
// guest neither chooses the server nor the bytes that it gets: a query is taken apart, and one of the same
// question is made anew. So the host's resolver, which often is on its loopback, is reached for nothing
// but looking up a name.
type names struct {
	servers []netip.Addr // fixed ones, or nil for the host's
	host    resolvConf
	port    uint16 // of the servers
	limit   *rate.Limiter
	busy    chan struct{} // one for each query on its way
	// egress says which names may be looked up, and hears of the addresses that they have.
	egress *egress.Guard
}

func newNames(c Config, p *policy) (*names, error) {
	for _, a := range c.DNS {
		if !a.IsValid() {
			return nil, errors.New("dns server: not an address")
		}
		if why := p.check(a); why != allowed {
			return nil, fmt.Errorf("dns server %s is %s", a, why)
		}
	}
	return &names{
		servers: c.DNS,
		host:    resolvConf{path: "/etc/resolv.conf"},
		port:    dnsPort,
		limit:   rate.NewLimiter(queriesPerSec, queryBurst),
		busy:    make(chan struct{}, maxQueries),
		egress:  p.egress,
	}, nil
}

// search returns the host's search list.
func (n *names) search() []string {
	_, search := n.host.load()
	return search
}

func (n *names) upstream() []netip.Addr {
	if n.servers != nil {
		return n.servers
	}
	servers, _ := n.host.load()
	return servers
}

// admit reports whether one more query may be worked on; done ends it.
func (n *names) admit() bool {
	if !n.limit.Allow() {
		return false
	}
	select {
	case n.busy <- struct{}{}:
		return true
	default:
		return false
	}
}

func (n *names) done() { <-n.busy }

// serveNamesUDP answers one query. A guest that asks too much gets no answer.
func (s *Stack) serveNamesUDP(f flow, query []byte) {
	if len(query) > maxQueryBytes || !s.names.admit() {
		return
	}
	query = append([]byte(nil), query...)
	if !s.start(func() {
		defer s.names.done()
		if answer := s.names.resolve(s.ctx, query, "udp"); answer != nil {
			s.sendUDP(f, answer)
		}
	}) {
		s.names.done()
	}
}

// serveNamesTCP answers the queries that come over one connection, one after the other.
func (s *Stack) serveNamesTCP(ctx context.Context, g *guestConn) {
	conn := gonet.NewTCPConn(g.wq, g.ep)
	defer context.AfterFunc(ctx, g.ep.Abort)()
	var message [2 + maxQueryBytes]byte
	for ctx.Err() == nil {
		conn.SetDeadline(time.Now().Add(dnsIdleTimeout))
		if _, err := io.ReadFull(conn, message[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(message[:2]))
		if n > maxQueryBytes {
			return
		}
		query := message[2:][:n]
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		if !s.names.admit() {
			return
		}
		answer := s.names.resolve(ctx, query, "tcp")
		s.names.done()
		if answer == nil {
			return
		}
		conn.SetDeadline(time.Now().Add(dnsIdleTimeout))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// resolve returns the answer to a query of the guest, nil for what is not a query.
func (n *names) resolve(ctx context.Context, query []byte, network string) []byte {
	q, err := parseQuestion(query)
	if err != nil {
		return nil
	}
	if why := q.refusal(); why != dnsmessage.RCodeSuccess {
		return q.reply(why)
	}
	if !n.egress.MayLookUp(q.name.Name.String()) {
		// As one that does not exist: with another error a resolver would not go on to the next name of its search list.
		return q.reply(dnsmessage.RCodeNameError)
	}
	for _, server := range n.upstream() {
		answer, err := n.exchange(ctx, q, netip.AddrPortFrom(server, n.port), network)
		if err == nil {
			binary.BigEndian.PutUint16(answer, q.id)
			n.bind(q, answer)
			return answer
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	return q.reply(dnsmessage.RCodeServerFailure)
}

// bind tells the egress rules which addresses an answer gives the name that was asked for, itself or by aliases.
func (n *names) bind(q question, answer []byte) {
	if n.egress == nil {
		return
	}
	var p dnsmessage.Parser
	if _, err := p.Start(answer); err != nil || p.SkipAllQuestions() != nil {
		return
	}
	// The order of an answer's records is not fixed, but aliases come before what they lead to.
	own := []dnsmessage.Name{q.name.Name}
	for range maxRecords {
		h, err := p.AnswerHeader()
		if err != nil {
			return
		}
		mine := h.Class == dnsmessage.ClassINET && slices.ContainsFunc(own, func(o dnsmessage.Name) bool { return equalNames(o, h.Name) })
		lasts := time.Duration(h.TTL) * time.Second
		switch {
		case mine && h.Type == dnsmessage.TypeA:
			r, err := p.AResource()
			if err != nil {
				return
			}
			n.egress.Bind(q.name.Name.String(), netip.AddrFrom4(r.A), lasts)
		case mine && h.Type == dnsmessage.TypeAAAA:
			r, err := p.AAAAResource()
			if err != nil {
				return
			}
			n.egress.Bind(q.name.Name.String(), netip.AddrFrom16(r.AAAA), lasts)
		case mine && h.Type == dnsmessage.TypeCNAME && len(own) < maxAliases:
			r, err := p.CNAMEResource()
			if err != nil {
				return
			}
			own = append(own, r.CNAME)
		default:
			if p.SkipAnswer() != nil {
				return
			}
		}
	}
}

// Bounds of what is read of an answer.
const (
	maxRecords = 256
	maxAliases = 17
)

// question is all that goes on from a guest's query.
type question struct {
	id       uint16
	opcode   dnsmessage.OpCode
	recurse  bool
	noCheck  bool // checking disabled: the guest validates DNSSEC itself
	name     dnsmessage.Question
	edns     bool
	size     int  // of the largest UDP answer the guest takes
	dnssecOK bool // the guest wants DNSSEC records
}

// parseQuestion reads a query with a single question.
func parseQuestion(message []byte) (question, error) {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil {
		return question{}, err
	}
	if h.Response {
		return question{}, errors.New("not a query")
	}
	q := question{id: h.ID, opcode: h.OpCode, recurse: h.RecursionDesired, noCheck: h.CheckingDisabled}
	if q.name, err = p.Question(); err != nil {
		return question{}, err
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone {
		return question{}, errors.New("more than one question")
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return question{}, errors.New("malformed")
	}
	for range 8 {
		r, err := p.AdditionalHeader()
		if err != nil {
			break
		}
		if r.Type == dnsmessage.TypeOPT {
			// The guest's limit is passed on, within what travels unfragmented everywhere.
			q.edns, q.size, q.dnssecOK = true, min(max(int(r.Class), 512), maxQueryBytes), r.DNSSECAllowed()
		}
		if p.SkipAdditional() != nil {
			break
		}
	}
	return q, nil
}

// refusal names the error for what is not a plain look-up of a name. Zone transfers would list a network
// of the host's.
func (q question) refusal() dnsmessage.RCode {
	const incrementalTransfer = 251
	switch {
	case q.opcode != 0:
		return dnsmessage.RCodeNotImplemented
	case q.name.Class != dnsmessage.ClassINET,
		q.name.Type == dnsmessage.TypeAXFR, q.name.Type == incrementalTransfer:
		return dnsmessage.RCodeRefused
	}
	return dnsmessage.RCodeSuccess
}

// query builds the message for a server.
func (q question) query(id uint16) ([]byte, error) {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), dnsmessage.Header{
		ID: id, RecursionDesired: q.recurse, CheckingDisabled: q.noCheck,
	})
	b.EnableCompression()
	if err := errors.Join(b.StartQuestions(), b.Question(q.name)); err != nil {
		return nil, err
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		if err := errors.Join(
			h.SetEDNS0(q.size, dnsmessage.RCodeSuccess, q.dnssecOK),
			b.StartAdditionals(),
			b.OPTResource(h, dnsmessage.OPTResource{}),
		); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// reply builds an answer of our own that says no.
func (q question) reply(code dnsmessage.RCode) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), dnsmessage.Header{
		ID: q.id, Response: true, OpCode: q.opcode, RecursionDesired: q.recurse, RecursionAvailable: true, RCode: code,
	})
	if errors.Join(b.StartQuestions(), b.Question(q.name)) != nil {
		return nil
	}
	m, err := b.Finish()
	if err != nil {
		return nil
	}
	return m
}

// answeredBy reports whether a message answers the question under the given id.
func (q question) answeredBy(message []byte, id uint16) bool {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || !h.Response || h.ID != id {
		return false
	}
	asked, err := p.Question()
	if err == dnsmessage.ErrSectionDone {
		return h.RCode != dnsmessage.RCodeSuccess // some servers leave it out of errors
	}
	return err == nil && asked.Type == q.name.Type && asked.Class == q.name.Class && equalNames(asked.Name, q.name.Name)
}

func equalNames(a, b dnsmessage.Name) bool {
	if a.Length != b.Length {
		return false
	}
	for i := range a.Data[:a.Length] {
		if lower(a.Data[i]) != lower(b.Data[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// exchange asks one server, from a fresh port and with a fresh id, so that answers cannot be guessed.
func (n *names) exchange(ctx context.Context, q question, server netip.AddrPort, network string) ([]byte, error) {
	var random [2]byte
	rand.Read(random[:])
	id := binary.BigEndian.Uint16(random[:])
	query, err := q.query(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	for {
		answer, err := readAnswer(conn, network)
		if err != nil {
			return nil, err
		}
		if q.answeredBy(answer, id) {
			return answer, nil
		}
	}
}

func readAnswer(conn net.Conn, network string) ([]byte, error) {
	if network == "tcp" {
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return nil, err
		}
		answer := make([]byte, binary.BigEndian.Uint16(length[:]))
		_, err := io.ReadFull(conn, answer)
		return answer, err
	}
	buf := datagrams.Get().(*[]byte)
	defer datagrams.Put(buf)
	n, err := conn.Read(*buf)
	return append([]byte(nil), (*buf)[:n]...), err
}
