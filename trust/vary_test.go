package trust

import (
	"strings"
	"testing"

	"manis/api/agent"
)

// A file with a form may tell of the network, and of nothing else.
func TestForms(t *testing.T) {
	const table = "127.0.0.1\tlocalhost\n"
	m := manifest(t)
	m.Containers[0].Files = []File{
		{Path: "/etc/hosts", Mode: 0o644, SHA256: sum([]byte(table)), Form: Hosts},
		{Path: "/etc/resolv.conf", Mode: 0o644, Form: Resolver},
	}
	if _, err := m.Encode(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		hosts, resolver string
		want            string
	}{
		"nothing of it":     {table, "", ""},
		"addresses":         {table + "10.0.0.9\th\nfd00::9\th\n", "nameserver 10.96.0.10\nsearch a.svc b.svc\noptions ndots:5\n", ""},
		"another name":      {table + "10.0.0.9\tbank.example\n", "", "files[0]"},
		"two names":         {table + "10.0.0.9\th bank.example\n", "", "files[0]"},
		"a name in between": {table + "10.0.0.9\tbank.example\n10.0.0.9\th\n", "", "files[0]"},
		"no address":        {table + "10.0.0.256\th\n", "", "files[0]"},
		"another begin":     {"10.0.0.9\tlocalhost\n", "", "files[0]"},
		"too many":          {table + strings.Repeat("10.0.0.9\th\n", maxOwnAddresses+1), "", "files[0]"},
		"server by name":    {table, "nameserver bank.example\n", "files[1]"},
		"another word":      {table, "sortlist 10.0.0.0\n", "files[1]"},
		"no end of line":    {table, "nameserver 10.0.0.1", "files[1]"},
		"not printable":     {table, "search a\x1bb\n", "files[1]"},
		"too long":          {table, strings.Repeat("search a\n", maxResolver), "files[1]"},
	} {
		r := request()
		r.Files = []*agent.File{{Path: "/etc/hosts", Mode: 0o644, Content: []byte(c.hosts)}, {Path: "/etc/resolv.conf", Mode: 0o644, Content: []byte(c.resolver)}}
		got, err := Of(r, false)
		if err == nil {
			err = m.Match(0, got)
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	r := request()
	r.Files = []*agent.File{{Path: "/etc/passwd", Mode: 0o644, Content: []byte(table)}, {Path: "/etc/resolv.conf", Mode: 0o644}}
	if got, err := Of(r, false); err != nil || m.Match(0, got) == nil {
		t.Errorf("another path was accepted, or %v", err)
	}
	m.Containers[0].Files[1].Form = "anything"
	if _, err := m.Encode(); err == nil {
		t.Error("a form that is not known was accepted")
	}
}

// Directories that containers share are the machine's: nothing else is reached by a bind.
func TestVolumes(t *testing.T) {
	for source, ok := range map[string]bool{"volume-work": true, "volume-": false, "volume-a/b": false, "volume-../x": false, "work": false, "shm-1": false, "": false} {
		r := request()
		r.Mounts = append(r.Mounts, &agent.Mount{Destination: "/work", Type: "bind", Source: source, Options: []string{"mode=0777"}})
		if _, err := Of(r, false); (err == nil) != ok {
			t.Errorf("source %q: %v", source, err)
		}
	}
}
