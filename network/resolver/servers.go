package resolver

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxServers is how many name servers of a resolv.conf count (resolv.conf(5), MAXNS).
	maxServers = 3
	// maxConf bounds what is read of a resolv.conf, bytes.
	maxConf = 64 << 10
)

// Servers returns the name servers in a resolv.conf of the host that are addresses of loopback, in their order.
func Servers(path string) ([]netip.Addr, error) {
	// It may be anything: nobody waits for the writer of a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read the name servers: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read the name servers: %s is not a file", path)
	}
	return parse(f), nil
}

func parse(r io.Reader) []netip.Addr {
	var servers []netip.Addr
	lines := bufio.NewScanner(io.LimitReader(r, maxConf))
	for n := 0; n < maxServers && lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		n++
		a, err := netip.ParseAddr(fields[1])
		if a = a.Unmap(); err == nil && a.IsLoopback() && a.Zone() == "" && !slices.Contains(servers, a) {
			servers = append(servers, a)
		}
	}
	return servers
}
