package trust

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Forms of files that are not the same in every run, because they tell of the network, which is the host's in any case.
const (
	// Hosts is a table of names that begins with the text whose digest the manifest has; what follows gives the container's own
	// name addresses, and nothing else.
	Hosts = "hosts"
	// Resolver is a resolv.conf: name servers, domains and options. There is no digest.
	Resolver = "resolver"
)

// Bounds of what varies.
const (
	maxOwnAddresses = 16
	maxResolver     = 8 << 10
)

// vary compares a file of a request with one of the manifest that has a form, and makes both the same if they agree.
func (f *File) vary(want File, hostname string) error {
	var err error
	switch want.Form {
	case Hosts:
		err = f.hosts(want.SHA256, hostname)
	case Resolver:
		err = resolver(f.content)
	default:
		err = errors.New("this release does not know")
	}
	if err == nil {
		f.SHA256, f.Form = want.SHA256, want.Form
	}
	return err
}

// hosts takes the lines for the own name from the end, and compares the rest.
func (f *File) hosts(digest, hostname string) error {
	rest := f.content
	for range maxOwnAddresses {
		if sum(rest) == digest {
			return nil
		}
		line, ok := bytes.CutSuffix(rest, []byte("\t"+hostname+"\n"))
		if !ok || hostname == "" {
			break
		}
		begin := bytes.LastIndexByte(line, '\n') + 1
		if _, err := netip.ParseAddr(string(line[begin:])); err != nil {
			break
		}
		rest = rest[:begin]
	}
	return fmt.Errorf("has other lines than addresses of %q besides the manifest's", hostname)
}

func resolver(content []byte) error {
	if len(content) > maxResolver {
		return fmt.Errorf("has more than %d bytes", maxResolver)
	}
	for line := range strings.Lines(string(content)) {
		word := strings.Fields(line)
		switch {
		case !strings.HasSuffix(line, "\n") || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\n' || r > '~' }):
			return errors.New("has a line that is not plain text")
		case len(word) == 2 && word[0] == "nameserver":
			if _, err := netip.ParseAddr(word[1]); err != nil {
				return fmt.Errorf("names a server %q, which is no address", word[1])
			}
		case len(word) > 1 && (word[0] == "search" || word[0] == "options"):
		default:
			return fmt.Errorf("has the line %q", strings.TrimSpace(line))
		}
	}
	return nil
}
