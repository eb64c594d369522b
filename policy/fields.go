package policy

import (
	"fmt"
	"math"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"

	"manis/image/signature"
	"manis/network/egress"
)

// version is the one of the format.
const version = "1"

// newPolicy reads the document of a file: the profile first, wherever it stands, then what is different.
func newPolicy(file string, node *yaml.Node) (*Policy, error) {
	var p *Policy
	var known bool
	ignored := func(field) error { return nil }
	read := func(members ...member) []member {
		return append([]member{{"version", ignored}, {"profile", ignored}}, members...)
	}
	var versioned bool
	names := []string{"images", "mounts", "devices", "capabilities", "networks", "sizes", "users", "egress"}
	first := read()
	for _, name := range names {
		first = append(first, member{name, ignored})
	}
	first[0].read = func(f field) error {
		v, err := f.scalar("the number "+version, "!!int", "!!str")
		if err != nil {
			return err
		}
		if versioned = v == version; !versioned {
			return f.wrong("%.40q is not a version that is known here: there is %s", v, version)
		}
		return nil
	}
	first[1].read = func(f field) error {
		name, err := f.text()
		if err != nil {
			return err
		}
		if p, known = profile(name); !known {
			return f.wrong("there is no profile %.40q: there are %s", name, strings.Join(Profiles(), ", "))
		}
		return nil
	}
	root := field{node, "", node.Line}
	if err := root.mapping(first...); err != nil {
		return nil, err
	}
	switch {
	case !versioned:
		return nil, root.wrong("version is missing (version: %s)", version)
	case p == nil:
		return nil, root.wrong("profile is missing (one of %s)", strings.Join(Profiles(), ", "))
	}
	p.File = file
	// Which rules the file names is said in refusals.
	rule := func(read func(field) error) func(field) error {
		return func(f field) error {
			p.lines[f.path] = f.line
			return read(f)
		}
	}
	section := func(name string, members ...member) member {
		for i := range members {
			members[i].read = rule(members[i].read)
		}
		return member{name, func(f field) error { return f.mapping(members...) }}
	}
	flag := func(v *bool) func(field) error { return into(v, field.bool) }
	err := root.mapping(read(
		section("images",
			member{"allow", each(&p.Images.Allow, pattern)},
			member{"digests", flag(&p.Images.Digests)},
			member{"signatures", each(&p.Images.Signatures, func(f field) (Signature, error) { return readSignature(file, f) })},
			member{"engines", into(&p.Images.Engines, word("trust", "refuse"))},
		),
		section("mounts",
			member{"allow", each(&p.Mounts.Allow, hostPath)},
			member{"volumes", flag(&p.Mounts.Volumes)},
			member{"engines", flag(&p.Mounts.Engines)},
		),
		section("devices", member{"allow", each(&p.Devices.Allow, device)}),
		section("capabilities",
			member{"allow", each(&p.Capabilities.Allow, capability)},
			member{"privileged", flag(&p.Capabilities.Privileged)},
			member{"escalation", flag(&p.Capabilities.Escalation)},
			member{"unfiltered", flag(&p.Capabilities.Unfiltered)},
		),
		section("networks",
			member{"allow", each(&p.Networks.Allow, word("none", "user", "namespace"))},
			member{"publish", each(&p.Networks.Publish, ports)},
			member{"hostLoopback", flag(&p.Networks.HostLoopback)},
			member{"linkLocal", flag(&p.Networks.LinkLocal)},
		),
		section("sizes",
			member{"memory", into(&p.Sizes.MemoryBytes, memory)},
			member{"cpus", into(&p.Sizes.MilliCPUs, cpus)},
			member{"pids", into(&p.Sizes.Pids, pids)},
		),
		section("users", member{"root", flag(&p.Users.Root)}),
		section("egress", member{"allow", func(f field) error {
			rules := []egress.Rule{}
			err := each(&rules, egressRule)(f)
			p.Egress.Allow = rules
			return err
		}}),
	)...)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// word reads one of some words.
func word(words ...string) func(field) (string, error) {
	return func(f field) (string, error) {
		s, err := f.text()
		if err == nil && !slices.Contains(words, s) {
			err = f.wrong("%.40q is not one of %s", s, strings.Join(words, ", "))
		}
		return s, err
	}
}

func pattern(f field) (Pattern, error) {
	s, err := f.text()
	if err != nil {
		return "", err
	}
	p := Pattern(s)
	if err := p.check(); err != nil {
		return "", f.wrong("%w", err)
	}
	return p, nil
}

// readSignature reads an entry, and the files of its keys.
func readSignature(file string, f field) (Signature, error) {
	s := Signature{Images: []Pattern{"**"}}
	err := f.mapping(
		member{"images", each(&s.Images, pattern)},
		member{"keys", each(&s.Keys, func(f field) (Key, error) {
			name, err := f.text()
			if err != nil {
				return Key{}, err
			}
			if !filepath.IsAbs(name) {
				name = filepath.Join(filepath.Dir(file), name)
			}
			text, err := read(name)
			if err != nil {
				return Key{}, f.wrong("%w", err)
			}
			k, err := signature.ParseKey(text)
			if err != nil {
				return Key{}, f.wrong("%s: %w", name, err)
			}
			return Key{name, k}, nil
		})},
	)
	if err == nil && len(s.Keys) == 0 {
		err = f.wrong("keys is missing: files with public keys (signatures by identity, without a key, are not supported)")
	}
	return s, err
}

func hostPath(f field) (Path, error) {
	var m Path
	err := f.mapping(
		member{"path", into(&m.Path, field.text)},
		member{"readOnly", into(&m.ReadOnly, field.bool)},
	)
	switch {
	case err != nil:
		return m, err
	case m.Path == "":
		return m, f.wrong("path is missing")
	case !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path:
		return m, f.wrong("%q is not an absolute path without . and .., such as %s", m.Path, path.Clean("/"+m.Path))
	case strings.ContainsRune(m.Path, 0):
		return m, f.wrong("%q is not a path", m.Path)
	}
	return m, nil
}

func device(f field) (string, error) {
	s, err := f.text()
	if err == nil && s != "*" && (!strings.HasPrefix(s, "/dev/") || path.Clean(s) != s) {
		err = f.wrong("%q is neither a path below /dev nor *", s)
	}
	return s, err
}

// capability reads a name, with CAP_ before it or without, and ALL. Which of them the guest's kernel knows does not
// matter: a name that it does not have is never asked for.
func capability(f field) (string, error) {
	s, err := f.text()
	if err != nil {
		return "", err
	}
	name := bare(s)
	if name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return "", f.wrong("%q is not a capability such as NET_ADMIN", s)
	}
	return name, nil
}

// bare is a capability's name in the form NET_ADMIN.
func bare(name string) string { return strings.TrimPrefix(strings.ToUpper(name), "CAP_") }

// ports reads [ADDRESS:]PORT[-PORT], with * for all ports.
func ports(f field) (Ports, error) {
	s, err := f.scalar("ports such as 8080, 8000-8100 or 127.0.0.1:*", "!!str", "!!int")
	if err != nil {
		return Ports{}, err
	}
	var r Ports
	numbers := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host := s[:i]
		if in, ok := strings.CutPrefix(host, "["); ok {
			host = strings.TrimSuffix(in, "]")
		}
		if r.Address, err = netip.ParseAddr(host); err != nil || r.Address.IsUnspecified() || r.Address.Zone() != "" {
			return r, f.wrong("%q: %q is not an address of the host", s, s[:i])
		}
		r.Address, numbers = r.Address.Unmap(), s[i+1:]
	}
	if numbers == "*" {
		r.First, r.Last = 1, 65535
		return r, nil
	}
	first, last, ranged := strings.Cut(numbers, "-")
	if !ranged {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || b < a {
		return r, f.wrong("%q is not a port, a range such as 8000-8100, or *", numbers)
	}
	r.First, r.Last = uint16(a), uint16(b)
	return r, nil
}

func memory(f field) (uint64, error) {
	s, err := f.scalar("an amount such as 512MiB or 4g", "!!str", "!!int")
	if err != nil {
		return 0, err
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n <= 0 || n == math.MaxInt64 {
		return 0, f.wrong("%.40q is not an amount such as 512MiB or 4g", s)
	}
	return uint64(n), nil
}

func cpus(f field) (uint64, error) {
	s, err := f.scalar("a number of processors", "!!int", "!!float")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n < 0.001 || n > 1<<16 {
		return 0, f.wrong("%.40q is not a number of processors", s)
	}
	return uint64(math.Round(n * 1000)), nil
}

func pids(f field) (int64, error) {
	s, err := f.scalar("a number of processes", "!!int")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 1 {
		return 0, f.wrong("%.40q is not a number of processes", s)
	}
	return n, nil
}

func egressRule(f field) (egress.Rule, error) {
	s, err := f.text()
	if err != nil {
		return egress.Rule{}, err
	}
	r, err := egress.Parse(s)
	if err != nil {
		return r, fmt.Errorf("line %d: %s: %w", f.node.Line, f.path, err)
	}
	return r, nil
}
