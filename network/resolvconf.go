package network

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// resolvConf follows the host's resolver configuration while it changes, as it does on a laptop.
type resolvConf struct {
	path string

	mu      sync.Mutex
	read    time.Time // modification time of what is parsed below
	servers []netip.Addr
	search  []string
}

// load returns the servers and the search list that are valid now; none if there is no such file.
func (r *resolvConf) load() ([]netip.Addr, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.path)
	if err != nil {
		r.servers, r.search, r.read = nil, nil, time.Time{}
		return nil, nil
	}
	if !info.ModTime().Equal(r.read) {
		if f, err := os.Open(r.path); err == nil {
			r.servers, r.search = parseResolvConf(f)
			r.read = info.ModTime()
			f.Close()
		}
	}
	return r.servers, r.search
}

// parseResolvConf reads what resolv.conf(5) says of servers and search lists and skips all else.
func parseResolvConf(r io.Reader) (servers []netip.Addr, search []string) {
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil && len(servers) < maxServers {
				servers = append(servers, a.Unmap())
			}
		case "search", "domain": // the last one counts
			search = fields[1:]
		}
	}
	return servers, search
}
