package egress

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// leastTime is for how long an answer counts at least: a guest connects after it has looked a name up, and
	// answers may say that they count for no time at all.
	leastTime = 10 * time.Second
	// mostTime bounds what an answer says of itself.
	mostTime = 24 * time.Hour
	// maxAddresses bounds the addresses that are remembered, maxNames the names of each.
	maxAddresses = 4096
	maxNames     = 16
	// maxLooks bounds the addresses that are looked at to make room for one.
	maxLooks = 32
)

// Guard decides by lists of rules, each of which has to allow what the sandbox wants, and remembers which addresses
// names had. It is safe for concurrent use. A nil Guard allows everything.
type Guard struct {
	lists []Rules
	now   func() time.Time

	mu sync.Mutex
	// bound are the names of addresses, and until when.
	bound map[netip.Addr]map[string]time.Time
}

// NewGuard makes a guard of some lists; nil if there is none.
func NewGuard(lists []Rules) *Guard {
	if len(lists) == 0 {
		return nil
	}
	return &Guard{lists: lists, now: time.Now, bound: make(map[netip.Addr]map[string]time.Time)}
}

// Allows reports whether the sandbox may reach a port of an address; of ICMP the port does not count. A name's
// addresses are open for as long as its answer said that they are its own: connections that stand then go on.
func (g *Guard) Allows(protocol Protocol, to netip.AddrPort) bool {
	if g == nil {
		return true
	}
	addr := to.Addr().Unmap().WithZone("")
	for _, list := range g.lists {
		if !g.opens(list, protocol, addr, to.Port()) {
			return false
		}
	}
	return true
}

func (g *Guard) opens(list Rules, protocol Protocol, addr netip.Addr, port uint16) bool {
	for _, r := range list {
		if !r.by(protocol, port) {
			continue
		}
		if r.Any || r.Prefix.IsValid() && r.Prefix.Contains(addr) || r.Name != "" && g.has(addr, r.Name) {
			return true
		}
	}
	return false
}

// has reports whether an address belongs to a name that the pattern covers.
func (g *Guard) has(addr netip.Addr, pattern string) bool {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, until := range g.bound[addr] {
		if now.Before(until) && covers(pattern, name) {
			return true
		}
	}
	return false
}

// MayLookUp reports whether a name may be looked up.
func (g *Guard) MayLookUp(name string) bool {
	if g == nil {
		return true
	}
	for _, list := range g.lists {
		if !list.MayLookUp(name) {
			return false
		}
	}
	return true
}

// Bind remembers that an answer to a question for name, which may be looked up, held an address for some time.
func (g *Guard) Bind(name string, addr netip.Addr, lasts time.Duration) {
	if g == nil {
		return
	}
	name, addr = canonical(name), addr.Unmap()
	now := g.now()
	until := now.Add(min(max(lasts, leastTime), mostTime))
	g.mu.Lock()
	defer g.mu.Unlock()
	names := g.bound[addr]
	if names == nil {
		if len(g.bound) >= maxAddresses {
			g.forget(now)
		}
		names = make(map[string]time.Time)
		g.bound[addr] = names
	}
	if _, known := names[name]; !known && len(names) >= maxNames {
		drop(names)
	}
	if until.After(names[name]) {
		names[name] = until
	}
}

// forget makes room. Of some addresses, which the order of maps draws, those that have run out go, else the one that
// would run out next: who fills the table must not make every answer cost a look at all of it.
func (g *Guard) forget(now time.Time) {
	var next netip.Addr
	var first time.Time
	looked := 0
	for addr, names := range g.bound {
		if looked++; looked > maxLooks {
			break
		}
		last := time.Time{}
		for _, until := range names {
			if until.After(last) {
				last = until
			}
		}
		if !now.Before(last) {
			delete(g.bound, addr)
			continue
		}
		if !next.IsValid() || last.Before(first) {
			next, first = addr, last
		}
	}
	if len(g.bound) >= maxAddresses {
		delete(g.bound, next)
	}
}

// drop takes the name away that runs out next.
func drop(names map[string]time.Time) {
	var next string
	var first time.Time
	for name, until := range names {
		if next == "" || until.Before(first) {
			next, first = name, until
		}
	}
	delete(names, next)
}
