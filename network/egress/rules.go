package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is what a connection goes by.
type Protocol string

// The protocols that rules name. Lookup is asking for a name's addresses, and nothing else.
const (
	TCP    Protocol = "tcp"
	UDP    Protocol = "udp"
	ICMP   Protocol = "icmp"
	Lookup Protocol = "lookup"
)

// Bounds of what is read.
const (
	maxRules = 256
	maxRule  = 512 // bytes
	maxVia   = 64
)

// Rules are what a sandbox may reach: what no rule opens is closed. An empty list opens nothing.
type Rules []Rule

// Rule opens one destination. Exactly one of Any, Prefix and Name is set.
type Rule struct {
	Any    bool
	Prefix netip.Prefix
	// Name is a name in lower case without a final dot, "*.example.com" for all names below one, or "*" for all.
	Name string
	// Via are the ways that are open; none: all of them.
	Via []Via
}

// Via is a protocol with a range of ports; 0 to 0 are all.
type Via struct {
	Protocol    Protocol
	First, Last uint16
}

// Parse reads a rule: DESTINATION[,PROTOCOL[/PORT[-PORT]]]...
//
// The destination is "any", an address, a network such as 10.0.0.0/8, or a name such as example.com or
// *.example.com. The protocols are tcp, udp, icmp (echo requests, without ports) and, for names, lookup, which lets the
// name be looked up and opens nothing. Without protocols all are open. So "10.0.0.0/8,tcp/443,udp/53" or
// "*.example.com,tcp/8000-8100". Semicolons do for commas, which some command lines take for their own.
func Parse(text string) (Rule, error) {
	fail := func(format string, args ...any) (Rule, error) {
		return Rule{}, fmt.Errorf("egress rule %.80q: %w", text, fmt.Errorf(format, args...))
	}
	if len(text) > maxRule {
		return fail("longer than %d bytes", maxRule)
	}
	parts := strings.Split(strings.ReplaceAll(text, ";", ","), ",")
	if len(parts) > maxVia {
		return fail("more than %d parts", maxVia)
	}
	r, err := destination(parts[0])
	if err != nil {
		return fail("%w", err)
	}
	for _, p := range parts[1:] {
		v, err := via(p)
		if err != nil {
			return fail("%w", err)
		}
		if v.Protocol == Lookup && r.Name == "" {
			return fail("lookup is for names")
		}
		r.Via = append(r.Via, v)
	}
	return r, nil
}

func destination(s string) (Rule, error) {
	if s == "any" {
		return Rule{Any: true}, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return Rule{}, fmt.Errorf("%q is not a network such as 10.0.0.0/8", s)
		}
		if p != p.Masked() {
			return Rule{}, fmt.Errorf("%s is an address within the network %s: give the one or the other", s, p.Masked())
		}
		if p.Addr().Is4In6() {
			return Rule{}, fmt.Errorf("%s: write IPv4 networks as such", s)
		}
		return Rule{Prefix: p}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return Rule{}, fmt.Errorf("%s: an address with a zone belongs to a link", s)
		}
		a = a.Unmap()
		return Rule{Prefix: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	name := canonical(s)
	if err := checkName(name); err != nil {
		return Rule{}, err
	}
	return Rule{Name: name}, nil
}

// canonical is a name in the form that rules have it in.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func checkName(name string) error {
	rest := name
	switch rest {
	case "*":
		return nil
	case "none":
		return errors.New("the word none opens nothing and stands alone")
	}
	rest = strings.TrimPrefix(rest, "*.")
	if rest == "" || len(rest) > 253 {
		return fmt.Errorf("%q is neither any, an address, a network nor a name", name)
	}
	numeric := true
	for label := range strings.SplitSeq(rest, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("%q is not a name", name)
		}
		for _, c := range []byte(label) {
			letter := c >= 'a' && c <= 'z' || c == '-' || c == '_'
			if !letter && (c < '0' || c > '9') {
				return fmt.Errorf("%q is neither any, an address, a network nor a name (a star stands for whole names at the beginning, as in *.example.com)", name)
			}
			numeric = numeric && !letter
		}
	}
	if numeric {
		return fmt.Errorf("%q is neither a name nor a whole address", name)
	}
	return nil
}

func via(s string) (Via, error) {
	protocol, ports, ranged := strings.Cut(s, "/")
	v := Via{Protocol: Protocol(protocol)}
	switch v.Protocol {
	case TCP, UDP:
	case ICMP, Lookup:
		if ranged {
			return v, fmt.Errorf("%s has no ports", protocol)
		}
	default:
		return v, fmt.Errorf("%q is not one of tcp, udp, icmp and lookup", protocol)
	}
	if !ranged {
		return v, nil
	}
	first, last, two := strings.Cut(ports, "-")
	if !two {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || b < a || strings.Trim(first+last, "0123456789") != "" {
		return v, fmt.Errorf("%q is not a port or a range of ports", ports)
	}
	v.First, v.Last = uint16(a), uint16(b)
	return v, nil
}

// ParseAll reads rules that are separated by spaces; "none" alone is the list that opens nothing. No rule at all
// is an error: whoever means nothing says so.
func ParseAll(text string) (Rules, error) { return ParseList(strings.Fields(text)) }

// ParseList reads a list of rules, or "none" alone.
func ParseList(texts []string) (Rules, error) {
	rules := Rules{}
	switch {
	case len(texts) == 0:
		return nil, errors.New("egress: no rule (the word none opens nothing)")
	case len(texts) > maxRules:
		return nil, fmt.Errorf("egress: %d rules, at most %d are possible", len(texts), maxRules)
	case len(texts) == 1 && texts[0] == "none":
		return rules, nil
	}
	for _, t := range texts {
		r, err := Parse(t)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// String is the rule as Parse reads it.
func (r Rule) String() string {
	var b strings.Builder
	switch {
	case r.Any:
		b.WriteString("any")
	case r.Name != "":
		b.WriteString(r.Name)
	case r.Prefix.IsSingleIP():
		b.WriteString(r.Prefix.Addr().String())
	default:
		b.WriteString(r.Prefix.String())
	}
	for _, v := range r.Via {
		b.WriteString("," + string(v.Protocol))
		if v.First != 0 {
			b.WriteString("/" + strconv.Itoa(int(v.First)))
			if v.Last != v.First {
				b.WriteString("-" + strconv.Itoa(int(v.Last)))
			}
		}
	}
	return b.String()
}

// Texts are the rules as ParseList reads them.
func (l Rules) Texts() []string {
	if len(l) == 0 {
		return []string{"none"}
	}
	texts := make([]string, len(l))
	for i, r := range l {
		texts[i] = r.String()
	}
	return texts
}

// String is the list as ParseAll reads it.
func (l Rules) String() string { return strings.Join(l.Texts(), " ") }

// by reports whether the rule opens a protocol and port.
func (r Rule) by(protocol Protocol, port uint16) bool {
	for _, v := range r.Via {
		if v.Protocol == protocol && (v.First == 0 || v.First <= port && port <= v.Last) {
			return true
		}
	}
	return len(r.Via) == 0
}

// covers reports whether a rule's name pattern covers a canonical name.
func covers(pattern, name string) bool {
	if below, ok := strings.CutPrefix(pattern, "*"); ok {
		return below == "" || strings.HasSuffix(name, below)
	}
	return pattern == name
}

// MayLookUp reports whether a name may be looked up: some rule names it, or opens every address.
func (l Rules) MayLookUp(name string) bool {
	name = canonical(name)
	for _, r := range l {
		if r.Any || r.Name != "" && covers(r.Name, name) {
			return true
		}
	}
	return false
}
