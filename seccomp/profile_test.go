package seccomp

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"empty":            {"", "parse seccomp profile: EOF"},
		"syntax":           {"{\n\"defaultAction\": \n}", "parse seccomp profile: line 3: invalid character"},
		"two objects":      {`{"defaultAction":"SCMP_ACT_ALLOW"}{}`, "there is text after the end"},
		"a list":           {`[]`, "cannot unmarshal array"},
		"too large":        {strings.Repeat(" ", maxText+1), "it has more than 1048576 bytes"},
		"no action":        {`{}`, "defaultAction is missing"},
		"action":           {`{"defaultAction":"ALLOW"}`, `unknown action "ALLOW"`},
		"action of a rule": {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"deny"}]}`, `rule 0 (mkdir): unknown action "deny"`},
		"name and names":   {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_KILL"}]}`, "rule 0 has both name and names"},
		"two kinds":        {`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}`, "it has both architectures and archMap"},
		"kernel":           {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_KILL","includes":{"minKernel":"new"}}]}`, `kernel version "new" is not of the form MAJOR.MINOR`},
		"sub architecture": {`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_MIPS64","subArchitectures":["z80"]}]}`, `unknown architecture "z80"`},
		"negative value":   {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":-1,"op":"SCMP_CMP_EQ"}]}]}`, "cannot unmarshal number -1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	p, err := Parse([]byte(`{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "comment": "of no interest",
		"archMap": [
			{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
			{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
			{"architecture": "SCMP_ARCH_S390X", "subArchitectures": null}],
		"syscalls": [
			{"name": "old", "action": "SCMP_ACT_ALLOW"},
			{"names": ["always"], "action": "SCMP_ACT_ALLOW", "includes": {}, "excludes": {}},
			{"names": ["both caps"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_A", "CAP_B"]}},
			{"names": ["neither cap"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_A", "CAP_B"]}},
			{"names": ["on amd64"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
			{"names": ["not on amd64"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64", "x86"]}},
			{"names": ["from 5.10"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.10"}},
			{"names": ["before 5.10"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.10"}},
			{"names": [], "action": "SCMP_ACT_ALLOW"}
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		target Target
		want   string
		archs  []specs.Arch
	}{
		"plain":       {Target{GOARCH: "amd64"}, "old, always, neither cap, on amd64, from 5.10", []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
		"arm":         {Target{GOARCH: "arm64"}, "old, always, neither cap, not on amd64, from 5.10", []specs.Arch{specs.ArchAARCH64, specs.ArchARM}},
		"one cap":     {Target{GOARCH: "amd64", Capabilities: []string{"CAP_B"}}, "old, always, on amd64, from 5.10", []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
		"two caps":    {Target{GOARCH: "amd64", Capabilities: []string{"CAP_B", "CAP_A"}}, "old, always, both caps, on amd64, from 5.10", []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
		"old kernel":  {Target{GOARCH: "amd64", Kernel: Kernel{5, 9}}, "old, always, neither cap, on amd64, before 5.10", []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
		"same kernel": {Target{GOARCH: "amd64", Kernel: Kernel{5, 10}}, "old, always, neither cap, on amd64, from 5.10", []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
		"new kernel":  {Target{GOARCH: "amd64", Kernel: Kernel{6, 1}}, "old, always, neither cap, on amd64, from 5.10", []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := p.Resolve(c.target)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, r := range s.Syscalls {
				names = append(names, r.Names...)
			}
			if got := strings.Join(names, ", "); got != c.want {
				t.Errorf("rules %s; want %s", got, c.want)
			}
			if !slices.Equal(s.Architectures, c.archs) || *s.DefaultErrnoRet != 13 {
				t.Errorf("architectures %v, errno %d", s.Architectures, *s.DefaultErrnoRet)
			}
		})
	}
	if _, err := p.Resolve(Target{GOARCH: "mips"}); err == nil || !strings.Contains(err.Error(), `architecture "mips" is not supported`) {
		t.Errorf("error %v", err)
	}
}

func TestParseKernel(t *testing.T) {
	for text, want := range map[string]Kernel{
		"4.8": {4, 8}, "6.1.192-manis": {6, 1}, "6.18-rc1": {6, 18}, "5.15.0": {5, 15},
	} {
		if k, err := ParseKernel(text); err != nil || k != want {
			t.Errorf("%q: %v, %v", text, k, err)
		}
	}
	for _, text := range []string{"", "5", "5.", ".5", "5.x", "0.1", "-1.2", "99999.1", "5.99999999999999999999"} {
		if k, err := ParseKernel(text); err == nil {
			t.Errorf("%q gives %v", text, k)
		}
	}
}

func TestDefaultSurvivesJSON(t *testing.T) {
	text, err := json.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}} {
		target := Target{GOARCH: "amd64", Capabilities: caps}
		a, err := Default().Resolve(target)
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.Resolve(target)
		if err != nil {
			t.Fatal(err)
		}
		x, errX := Compile(a, "amd64")
		y, errY := Compile(b, "amd64")
		if errX != nil || errY != nil || !bytes.Equal(x.Program, y.Program) {
			t.Errorf("the profile compiles to another program after a way through JSON (%v, %v)", errX, errY)
		}
	}
}

// Every name of the default profile is a call of some architecture.
func TestDefaultNamesExist(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Default().Rules {
		for _, n := range r.Names {
			found := false
			for _, c := range []*convention{amd64, x86, arm64, arm} {
				_, ok := c.numbers()[n]
				found = found || ok
			}
			// libseccomp's pseudo names and calls of kernels before 2.6.
			if !found && !slices.Contains([]string{"arm_sync_file_range", "sync_file_range2", "fstatat64", "fadvise64_64", "semtimedop_time64", "recv", "utimensat_time64", "io_pgetevents_time64"}, n) {
				t.Errorf("no architecture has %s", n)
			}
			if len(r.Args) == 0 && r.Includes == nil && r.Excludes == nil {
				if seen[n] {
					t.Errorf("%s is named twice", n)
				}
				seen[n] = true
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	text, err := json.Marshal(Default())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"name":"mkdir","action":"SCMP_ACT_TRACE","errnoRet":5,"args":[{"index":1,"value":18446744073709551615,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"},{"index":1,"value":5,"op":"SCMP_CMP_LE"}],"includes":{"minKernel":"4.8"}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		for _, goarch := range []string{"amd64", "arm64"} {
			s, err := p.Resolve(Target{GOARCH: goarch, Capabilities: []string{"CAP_SYS_ADMIN"}})
			if err != nil {
				t.Fatal(err)
			}
			filter, err := Compile(s, goarch)
			if err != nil {
				if !strings.Contains(err.Error(), "4096 instructions") {
					t.Fatalf("what Parse took Compile refuses: %v", err)
				}
				continue
			}
			for _, n := range []uint32{0, 59, 435, 0x40000000, 1<<32 - 1} {
				for _, audit := range []uint32{amd64.audit, x86.audit, arm64.audit, arm.audit} {
					if _, _, err := run(filter.Program, call{number: n, audit: audit}); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	})
}
