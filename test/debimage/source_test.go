package debimage

import "testing"

func TestMirrorIsTakenFromTheMachinesSources(t *testing.T) {
	tests := []struct {
		name, content, want string
		parse               func(content, suite string) string
	}{
		{"one line", "deb http://a/debian bookworm main\n", "http://a/debian", parseList},
		{"source packages only", "deb-src http://a/debian bookworm main\n", "", parseList},
		{"comment", "# deb http://a/debian bookworm main\n", "", parseList},
		{"other suite first", "deb http://a bookworm-updates main\ndeb https://b/ bookworm contrib main # near\n", "https://b/", parseList},
		{"without main", "deb http://a bookworm non-free\n", "", parseList},
		{"options", "deb [arch=amd64 signed-by=/k.gpg] http://a bookworm main\n", "http://a", parseList},
		{"options with spaces", "deb [ arch=amd64 ] http://a bookworm main\n", "http://a", parseList},
		{"unclosed options", "deb [arch=amd64 http://a bookworm main\n", "", parseList},
		{"compact disc", "deb cdrom:[Debian]/ bookworm main\ndeb http://a bookworm main\n", "http://a", parseList},
		{"nothing", "", "", parseList},
		{"stanza", "Types: deb\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\nComponents: main\n", "http://a/debian", parseDeb822},
		{"stanza with a comment", "Types: deb\n# URIs: http://old\nURIs: http://a\nSuites: bookworm\nComponents: main\n", "http://a", parseDeb822},
		{"second stanza", "Types: deb\nURIs: http://s\nSuites: bookworm-security\nComponents: main\n\nTypes: deb deb-src\nURIs: http://a\nSuites: bookworm\nComponents: main\n", "http://a", parseDeb822},
		{"folded field", "Types: deb\nURIs:\n mirror+file:/x\n http://a\nSuites: bookworm\nComponents: main\n", "http://a", parseDeb822},
		{"disabled", "Enabled: no\nTypes: deb\nURIs: http://a\nSuites: bookworm\nComponents: main\n", "", parseDeb822},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.parse(test.content, "bookworm"); got != test.want {
				t.Errorf("mirror %q, want %q", got, test.want)
			}
		})
	}
}

func TestOSRelease(t *testing.T) {
	id, codename := osRelease("PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_CODENAME=bookworm\nID='debian'\n")
	if id != "debian" || codename != "bookworm" {
		t.Errorf("got %q, %q", id, codename)
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b] http://a bookworm main")
	f.Add("Types: deb\nURIs: http://a\n x\nSuites: bookworm\nComponents: main")
	f.Fuzz(func(t *testing.T, content string) {
		for _, mirror := range []string{parseList(content, "bookworm"), parseDeb822(content, "bookworm")} {
			if mirror != "" && !usable(mirror) {
				t.Errorf("unusable mirror %q", mirror)
			}
		}
	})
}
