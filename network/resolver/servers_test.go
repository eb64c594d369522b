package resolver

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestServers(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"docker's":                   {"search example.org\nnameserver 127.0.0.11\noptions ndots:0\n", "[127.0.0.11]"},
		"several, not of loopback":   {"nameserver 10.0.0.1\nnameserver ::1\nnameserver 127.0.0.53\n", "[::1 127.0.0.53]"},
		"the fourth does not count":  {"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 127.0.0.1\n", "[]"},
		"twice, and mapped":          {"nameserver 127.0.0.1\nnameserver ::ffff:127.0.0.1\n", "[127.0.0.1]"},
		"comments and other things":  {"# nameserver 127.0.0.1\nnameserver\nnameserver dns.example\n;\n", "[]"},
		"beyond what is read":        {strings.Repeat("#\n", maxConf) + "nameserver 127.0.0.1\n", "[]"},
		"not text, and without ends": {strings.Repeat("\xff", maxConf+1), "[]"},
	} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := Servers(path)
		if fmt.Sprint(got) != c.want || err != nil {
			t.Errorf("%s: %v, %v; want %s", name, got, err, c.want)
		}
	}
}

func TestServersOfAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Servers(path); err == nil {
		t.Errorf("a pipe without a writer has name servers: %v", got)
	}
}

func FuzzServers(f *testing.F) {
	f.Add("nameserver 127.0.0.11\n")
	f.Fuzz(func(t *testing.T, text string) {
		got := parse(strings.NewReader(text))
		if len(got) > maxServers || slices.ContainsFunc(got, func(a netip.Addr) bool { return !a.IsLoopback() || a.Is4In6() }) {
			t.Errorf("%q: %v", text, got)
		}
	})
}
