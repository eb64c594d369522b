package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Bounds of a profile that comes from outside.
const (
	maxText  = 1 << 20 // bytes of JSON
	maxRules = 4096
	maxNames = 1 << 15 // of all rules together
	maxArgs  = 64      // conditions of one rule
)

// Profile is a profile as docker writes it: which of its rules hold depends on
// the container and the machine. Make one with Parse or Default.
type Profile struct {
	DefaultAction   specs.LinuxSeccompAction `json:"defaultAction"`
	DefaultErrnoRet *uint                    `json:"defaultErrnoRet,omitempty"`
	// Architectures and ArchMap exclude each other. The second adds to the
	// machine's own architecture those that run on it.
	Architectures []specs.Arch             `json:"architectures,omitempty"`
	ArchMap       []Architecture           `json:"archMap,omitempty"`
	Flags         []specs.LinuxSeccompFlag `json:"flags,omitempty"`
	Rules         []Rule                   `json:"syscalls"`
}

// Architecture names the conventions that run beside another one.
type Architecture struct {
	Arch     specs.Arch   `json:"architecture"`
	SubArchs []specs.Arch `json:"subArchitectures"`
}

// Rule says what happens to some system calls.
type Rule struct {
	Names []string `json:"names,omitempty"`
	// Name is the old form of Names, for one.
	Name     string                   `json:"name,omitempty"`
	Action   specs.LinuxSeccompAction `json:"action"`
	ErrnoRet *uint                    `json:"errnoRet,omitempty"`
	Args     []specs.LinuxSeccompArg  `json:"args,omitempty"`
	// Includes must hold for the rule to count, Excludes must not.
	Includes *Filters `json:"includes,omitempty"`
	Excludes *Filters `json:"excludes,omitempty"`
}

// Filters are conditions on where a profile is used. As an inclusion all of
// the capabilities must be there, as an exclusion any one suffices.
type Filters struct {
	Caps      []string `json:"caps,omitempty"`
	Arches    []string `json:"arches,omitempty"` // "amd64", "x86", "arm64", ...
	MinKernel *Kernel  `json:"minKernel,omitempty"`
}

// Kernel is a version of Linux. The zero value stands for one newer than all.
type Kernel struct{ Major, Minor int }

// ParseKernel reads the beginning of a release such as "6.1.192-manis".
func ParseKernel(release string) (Kernel, error) {
	fail := fmt.Errorf("kernel version %.40q is not of the form MAJOR.MINOR", release)
	major, rest, ok := strings.Cut(release, ".")
	if !ok {
		return Kernel{}, fail
	}
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		rest = rest[:i]
	}
	// Sizes are bounded by the bit size: Atoi would take any.
	a, err := strconv.ParseUint(major, 10, 16)
	if err != nil {
		return Kernel{}, fail
	}
	b, err := strconv.ParseUint(rest, 10, 16)
	if err != nil {
		return Kernel{}, fail
	}
	if a == 0 {
		return Kernel{}, fail
	}
	return Kernel{int(a), int(b)}, nil
}

// UnmarshalJSON reads "4.8".
func (k *Kernel) UnmarshalJSON(text []byte) error {
	var s string
	err := json.Unmarshal(text, &s)
	if err == nil {
		*k, err = ParseKernel(s)
	}
	return err
}

// MarshalJSON writes "4.8".
func (k Kernel) MarshalJSON() ([]byte, error) {
	return json.Marshal(fmt.Sprintf("%d.%d", k.Major, k.Minor))
}

func (k Kernel) atLeast(o Kernel) bool {
	return k == Kernel{} || k.Major > o.Major || k.Major == o.Major && k.Minor >= o.Minor
}

// Parse reads a profile in docker's JSON format. Fields that it does not know
// are ignored, as docker does; values that it does not know are errors.
func Parse(text []byte) (*Profile, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("parse seccomp profile: it has more than %d bytes", maxText)
	}
	p := new(Profile)
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(p); err != nil {
		return nil, fmt.Errorf("parse seccomp profile: %w", explain(text, err))
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("parse seccomp profile: there is text after the end of the JSON object")
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Name != "" {
			if len(r.Names) > 0 {
				return nil, fmt.Errorf("parse seccomp profile: rule %d has both name and names", i)
			}
			r.Names, r.Name = []string{r.Name}, ""
		}
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, errors.New("parse seccomp profile: it has both architectures and archMap")
	}
	if err := check(p.all()); err != nil {
		return nil, fmt.Errorf("parse seccomp profile: %w", err)
	}
	return p, nil
}

// explain adds where in the text a syntax error is.
func explain(text []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		line := 1 + bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n"))
		return fmt.Errorf("line %d: %w", line, err)
	}
	return err
}

// Target is where a profile is used.
type Target struct {
	// GOARCH of the machine: amd64 or arm64.
	GOARCH string
	// Kernel is the guest's.
	Kernel Kernel
	// Capabilities are those of the bounding set, "CAP_SYS_ADMIN".
	Capabilities []string
}

// Resolve returns the rules that hold for a container. It shares memory with the profile.
func (p *Profile) Resolve(t Target) (*specs.LinuxSeccomp, error) {
	archs, err := machine(t.GOARCH)
	if err != nil {
		return nil, err
	}
	s := p.all()
	s.Syscalls = nil
	for _, a := range p.ArchMap {
		if a.Arch == archs[0].name {
			s.Architectures = append([]specs.Arch{a.Arch}, a.SubArchs...)
			break
		}
	}
	for _, r := range p.Rules {
		if r.Includes.include(t, archs[0].docker) && !r.Excludes.exclude(t, archs[0].docker) {
			s.Syscalls = append(s.Syscalls, r.plain())
		}
	}
	return s, nil
}

// all returns the profile with the rules of every container.
func (p *Profile) all() *specs.LinuxSeccomp {
	s := &specs.LinuxSeccomp{
		DefaultAction:   p.DefaultAction,
		DefaultErrnoRet: p.DefaultErrnoRet,
		Architectures:   slices.Clone(p.Architectures),
		Flags:           p.Flags,
	}
	for _, r := range p.Rules {
		s.Syscalls = append(s.Syscalls, r.plain())
	}
	for _, a := range p.ArchMap {
		s.Architectures = append(append(s.Architectures, a.Arch), a.SubArchs...)
	}
	return s
}

func (r *Rule) plain() specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: r.Names, Action: r.Action, ErrnoRet: r.ErrnoRet, Args: r.Args}
}

func (f *Filters) include(t Target, arch string) bool {
	if f == nil {
		return true
	}
	for _, c := range f.Caps {
		if !slices.Contains(t.Capabilities, c) {
			return false
		}
	}
	return (len(f.Arches) == 0 || slices.Contains(f.Arches, arch)) && (f.MinKernel == nil || t.Kernel.atLeast(*f.MinKernel))
}

func (f *Filters) exclude(t Target, arch string) bool {
	if f == nil {
		return false
	}
	for _, c := range f.Caps {
		if slices.Contains(t.Capabilities, c) {
			return true
		}
	}
	return slices.Contains(f.Arches, arch) || f.MinKernel != nil && t.Kernel.atLeast(*f.MinKernel)
}
