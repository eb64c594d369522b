package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// dials asks the probe in a container to reach addresses and returns what it says of each.
func (w *world) dials(container string, at ...string) map[string]string {
	w.t.Helper()
	r := w.manis(append([]string{"exec", container, "probe", "dial"}, at...)...)
	said := make(map[string]string)
	for line := range strings.Lines(r.stdout) {
		verdict, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if address, answer, ok := strings.Cut(rest, ": "); ok {
			said[address] = verdict + " " + answer
		}
	}
	if len(said) < len(at) {
		w.t.Fatalf("%d answers for %d addresses: %s", len(said), len(at), r)
	}
	return said
}

// A container reaches the world by TCP and UDP, IPv4 and IPv6, and looks names up where the
// host does; it reaches neither the host's loopback, however that is spelled, nor
// link-local and metadata addresses.
func TestOutboundAndDefaultDeny(t *testing.T) {
	t.Parallel()
	w := newLabWorld(t)
	w.net.serve("world", "tcp/"+labServer+":80", "udp/"+labServer+":80", "tcp/["+labServer6+"]:80", "udp/["+labServer6+"]:80")
	w.net.serve("loopback", "tcp/127.0.0.1:81", "udp/127.0.0.1:81", "tcp/[::1]:81", "udp/[::1]:81")
	w.net.serve("metadata", "tcp/"+metadata+":80", "udp/"+metadata+":80")
	w.load("box")
	w.up("--name", "c", "box", "sleep", "1000")
	gateway := w.field("c", "{{.NetworkSettings.Gateway}}")

	t.Run("world", func(t *testing.T) {
		for at, said := range w.in(t).dials("c", "tcp/"+labServer+":80", "udp/"+labServer+":80", "tcp/["+labServer6+"]:80", "udp/["+labServer6+"]:80") {
			if said != "ok world got hello" {
				t.Errorf("%s: %s", at, said)
			}
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		for at, said := range w.in(t).dials("c", "tcp/"+labServer+":9") {
			if !strings.Contains(said, "refused") {
				t.Errorf("%s: %s", at, said)
			}
		}
	})
	t.Run("denied", func(t *testing.T) {
		var all []string
		for _, network := range []string{"tcp", "udp"} {
			for _, host := range []string{
				"127.0.0.1", "127.1.2.3", gateway, "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::]",
				"[fd6d:616e:6973::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
			} {
				all = append(all, network+"/"+host+":81")
			}
			for _, host := range []string{metadata, "[::ffff:" + metadata + "]", "169.254.1.1", "[fe80::1%eth0]", "[fd00:ec2::254]", "100.100.100.200"} {
				all = append(all, network+"/"+host+":80")
			}
		}
		for at, said := range w.in(t).dials("c", all...) {
			if strings.HasPrefix(said, "ok") {
				t.Errorf("%s is reached: %s", at, said)
			}
		}
	})
	t.Run("a route does not help", func(t *testing.T) {
		w := w.in(t)
		w.up("--name", "admin", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "box", "sleep", "1000")
		w.sh("admin", "ip route add 127.0.0.2/32 via "+gateway+" dev eth0 2>/dev/null; ip addr del 127.0.0.1/8 dev lo; ip route add "+metadata+" via "+gateway+"; ip route add 127.0.0.0/8 via "+gateway+" table main 2>/dev/null; true")
		for at, said := range w.dials("admin", "tcp/127.0.0.1:81", "tcp/127.0.0.2:81", "tcp/"+metadata+":80") {
			if strings.HasPrefix(said, "ok") {
				t.Errorf("%s is reached: %s", at, said)
			}
		}
		w.ok("rm", "-f", "admin")
	})
}

// Flags open what is closed, each its own part.
func TestAllowFlags(t *testing.T) {
	t.Parallel()
	w := newLabWorld(t)
	w.net.serve("loopback", "tcp/127.0.0.1:81", "udp/127.0.0.1:81")
	w.net.serve("metadata", "tcp/"+metadata+":80", "udp/"+metadata+":80")
	w.load("box")
	w.up("--name", "loop", "--allow-host-loopback", "--add-host", "the-host:host-gateway", "box", "sleep", "1000")
	w.up("--name", "link", "--allow-link-local", "box", "sleep", "1000")
	host := w.field("loop", "{{.NetworkSettings.Gateway}}")
	for _, c := range []struct {
		container, at string
		open          bool
	}{
		{"loop", "tcp/" + host + ":81", true}, {"loop", "udp/" + host + ":81", true},
		{"loop", "tcp/host.docker.internal:81", true}, {"loop", "tcp/the-host:81", true},
		{"loop", "tcp/" + metadata + ":80", false},
		{"link", "tcp/" + metadata + ":80", true}, {"link", "udp/" + metadata + ":80", true},
		{"link", "tcp/" + host + ":81", false},
	} {
		if said := w.dials(c.container, c.at)[c.at]; strings.HasPrefix(said, "ok") != c.open {
			t.Errorf("%s to %s: %s", c.container, c.at, said)
		}
	}
	if got := w.field("loop", "{{.Manis.HostAccess.Loopback}} {{.Manis.HostAccess.LinkLocal}}"); got != "true false" {
		t.Errorf("inspect says of loopback and link-local: %s", got)
	}
}

func TestNetworkNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	got := w.ok("run", "--rm", "--network", "none", "box", "sh", "-c", "ip -o link | wc -l; ip -o addr show lo | grep -c 127.0.0.1; ip route | wc -l; probe dial tcp/192.0.2.1:80 >/dev/null || echo unreachable")
	if got != "1\n1\n0\nunreachable" {
		t.Errorf("links, loopback, routes: %q", got)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	w := newLabWorld(t)
	w.net.serveNames(labNames, map[string][4]byte{
		"www.example.test": {203, 0, 113, 1}, "db.corp.test": {203, 0, 113, 7},
	}, map[string]string{"text.example.test": "a text", "long.example.test": strings.Repeat("x", 200)})
	w.net.serve("world", "tcp/"+labServer+":80")
	w.load("box")
	w.up("--name", "c", "--dns", labNames, "--dns-search", "corp.test", "--dns-option", "ndots:2", "--add-host", "peer:10.1.2.3", "--add-host", "six:2001:db8::6",
		"--hostname", "box", "--domainname", "corp.test", "box", "sleep", "1000")
	for _, c := range []struct{ name, want string }{
		{"www.example.test", "www.example.test [203.0.113.1] []"},
		{"db", "db [203.0.113.7] []"}, // by the search list
		{"peer", "peer [10.1.2.3] []"},
		{"six", "six [2001:db8::6] []"},
	} {
		if got := w.ok("exec", "c", "probe", "lookup", c.name); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if r := w.manis("exec", "c", "probe", "lookup", "nothing.example.test"); r.code != 1 || !strings.Contains(r.stdout, "no such host") {
		t.Errorf("a name that is not there: %s", r)
	}
	if got := w.sh("c", "nslookup -type=txt text.example.test 2>/dev/null | grep -c 'a text'"); got != "1" {
		t.Errorf("text: %q", got)
	}
	if got := w.dials("c", "tcp/www.example.test:80")["tcp/www.example.test:80"]; got != "ok world got hello" {
		t.Errorf("by name: %s", got)
	}
	w.sees("c", []seen{
		{"resolv.conf", "grep -v nameserver /etc/resolv.conf | sort", "options ndots:2\nsearch corp.test"},
		{"own name", "hostname; grep -c box.corp.test /etc/hosts", "box\n2"},
	})
}

// Published ports lead into the container, by TCP and UDP, IPv4 and IPv6, and are closed
// with it.
func TestPublishedPorts(t *testing.T) {
	t.Parallel()
	w := newLabWorld(t)
	w.load("box")
	w.up("--name", "c", "-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:80", "-p", "[::1]:8082:80", "-p", "80", "-p", "9000-9002:7000-7002",
		"box", "probe", "serve", "tcp/:80", "udp/:80", "tcp/:7001")
	eventually(t, "the server", func() bool { return strings.Contains(w.ok("logs", "c"), "serving") })
	for _, at := range []string{
		"tcp/127.0.0.1:8080", "tcp/[::1]:8080", "tcp/" + labServer + ":8080", "tcp/[" + labServer6 + "]:8080",
		"udp/127.0.0.1:8080", "udp/[::1]:8080", "udp/" + labServer + ":8080", "udp/[" + labServer6 + "]:8080",
		"tcp/127.0.0.1:8081", "tcp/[::1]:8082", "tcp/127.0.0.1:9001",
	} {
		t.Run(at, func(t *testing.T) {
			if got, err := w.net.ask(at); err != nil || !strings.HasPrefix(got, "hello from ") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	t.Run("only where it was published", func(t *testing.T) {
		for _, at := range []string{"tcp/" + labServer + ":8081", "tcp/127.0.0.1:8082", "tcp/[::1]:8081"} {
			if got, err := w.net.ask(at); err == nil {
				t.Errorf("%s answers %q", at, got)
			}
		}
	})
	t.Run("refused when nobody listens inside", func(t *testing.T) {
		if got, err := w.net.ask("tcp/127.0.0.1:9000"); err == nil {
			t.Errorf("answer %q", got)
		}
	})
	t.Run("ps and port say so", func(t *testing.T) {
		w := w.in(t)
		ports := w.ok("ps", "--format", "{{.Ports}}")
		for _, want := range []string{"0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp", "0.0.0.0:8080->80/udp", "127.0.0.1:8081->80/tcp", "[::1]:8082->80/tcp", "0.0.0.0:9000-9002->7000-7002/tcp"} {
			if !strings.Contains(ports, want) {
				t.Errorf("%q lacks %s", ports, want)
			}
		}
		if got := w.ok("port", "c", "7001"); got != "0.0.0.0:9001\n[::]:9001" {
			t.Errorf("port: %q", got)
		}
		w.fails(1, "no public port", "port", "c", "4711")
		var published map[string][]struct{ HostIP, HostPort string }
		if err := json.Unmarshal([]byte(w.field("c", "{{json .NetworkSettings.Ports}}")), &published); err != nil || len(published["80/tcp"]) < 4 {
			t.Errorf("inspect: %v, %v", published, err)
		}
		// The port that was left to choose.
		for line := range strings.Lines(w.ok("port", "c", "80")) {
			if at, err := netip.ParseAddrPort(strings.TrimSpace(line)); err != nil || at.Port() == 0 {
				t.Errorf("port %q: %v", line, err)
			}
		}
	})
	t.Run("large datagram and long stream", func(t *testing.T) {
		c, err := w.net.dial("udp", "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(commandTime / 4))
		text := strings.Repeat("d", 8000)
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64<<10)
		n, err := c.Read(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), text) {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	t.Run("closed with the container", func(t *testing.T) {
		w := w.in(t)
		w.ok("stop", "-t", "0", "c")
		if got := w.ok("ps", "-a", "--format", "{{.Ports}}"); got != "" {
			t.Errorf("ports of a stopped container: %q", got)
		}
		for _, at := range []string{"tcp/127.0.0.1:8080", "tcp/[::1]:8082"} {
			if got, err := w.net.ask(at); err == nil {
				t.Errorf("%s still answers %q", at, got)
			}
		}
		w.ok("start", "c")
		eventually(t, "the server to be back", func() bool {
			got, err := w.net.ask("tcp/127.0.0.1:8080")
			return err == nil && strings.HasPrefix(got, "hello from ")
		})
	})
}

// ask sends a line to network/address from the lab and returns the answer.
func (l *lab) ask(at string) (string, error) {
	network, address, _ := strings.Cut(at, "/")
	c, err := l.dial(network, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil && n == 0 {
		return "", err
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

// Without a lab, so also for ordinary users: the container reaches a server on an address
// of this machine that is not its loopback, and a published port is reached.
func TestNetworkOfThisHost(t *testing.T) {
	t.Parallel()
	w := newUserWorld(t)
	here := hostAddress(t)
	server, err := net.Listen("tcp", net.JoinHostPort(here, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go answerTCP(server, "host")
	loopback, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer loopback.Close()
	go answerTCP(loopback, "loopback")
	_, hidden, _ := net.SplitHostPort(loopback.Addr().String())
	w.load("box")
	w.up("--name", "c", "-p", "127.0.0.1::80", "box", "probe", "serve", "tcp/:80")
	at := "tcp/" + server.Addr().String()
	if got := w.dials("c", at)[at]; got != "ok host got hello" {
		t.Errorf("%s: %s", at, got)
	}
	gateway := w.field("c", "{{.NetworkSettings.Gateway}}")
	for at, said := range w.dials("c", "tcp/127.0.0.1:"+hidden, "tcp/"+gateway+":"+hidden, "tcp/[::ffff:127.0.0.1]:"+hidden) {
		if strings.HasPrefix(said, "ok") {
			t.Errorf("%s is reached: %s", at, said)
		}
	}
	published := w.ok("port", "c", "80")
	eventually(t, "the published port", func() bool {
		c, err := net.Dial("tcp", published)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintln(c, "hello")
		b, _ := io.ReadAll(c)
		return strings.HasPrefix(string(b), "hello from ")
	})
}

// hostAddress is an IPv4 address of this machine that is neither loopback nor
// link-local.
func hostAddress(t testing.TB) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but its loopback")
	return ""
}
