package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// write puts a file into a directory of the test's own.
func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// parse reads a policy that has to be right.
func parse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse("/policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newKey(t testing.TB) (private *ecdsa.PrivateKey, public string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return private, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}))
}

func TestEveryField(t *testing.T) {
	dir := t.TempDir()
	_, public := newKey(t)
	write(t, dir, "release.pub", public)
	p, err := Parse(filepath.Join(dir, "policy.yaml"), []byte(`
profile: restricted
version: 1
images:
  allow: ["docker.io/library/*", "registry.example.com:5000/**:v1*"]
  digests: true
  signatures:
    - images: ["registry.example.com:5000/**"]
      keys: [release.pub]
  engines: trust
mounts:
  allow:
    - path: /srv/data
      readOnly: true
    - {path: /}
  volumes: false
  engines: false
devices: {allow: [/dev/fuse]}
capabilities:
  allow: [cap_net_admin, CHOWN]
  privileged: true
  escalation: true
  unfiltered: true
networks:
  allow: [none]
  publish: [80, "8000-8100", "127.0.0.1:*", "[::1]:443"]
  hostLoopback: true
  linkLocal: true
sizes:
  memory: 2GiB
  cpus: 1.5
  pids: 100
users: {root: true}
egress:
  allow: ["10.0.0.0/8,tcp/443", "*.example.com"]
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, got, want any }{
		{"images", p.Images.Allow, []Pattern{"docker.io/library/*", "registry.example.com:5000/**:v1*"}},
		{"digests", p.Images.Digests, true},
		{"key", p.Images.Signatures[0].Keys[0].File, filepath.Join(dir, "release.pub")},
		{"engines", p.Images.Engines, "trust"},
		{"mounts", p.Mounts, Mounts{Allow: []Path{{"/srv/data", true}, {"/", false}}}},
		{"devices", p.Devices.Allow, []string{"/dev/fuse"}},
		{"capabilities", p.Capabilities, Capabilities{[]string{"NET_ADMIN", "CHOWN"}, true, true, true}},
		{"networks", p.Networks.Allow, []string{"none"}},
		{"publish", listed(p.Networks.Publish, ""), "80, 8000-8100, 127.0.0.1:*, [::1]:443"},
		{"loopback", p.Networks.HostLoopback && p.Networks.LinkLocal, true},
		{"sizes", p.Sizes, Sizes{2 << 30, 1500, 100}},
		{"root", p.Users.Root, true},
		{"egress", p.Egress.Allow.String(), "10.0.0.0/8,tcp/443 *.example.com"},
		{"line", p.origin("mounts.allow"), "line 12"},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	var b strings.Builder
	if err := p.Show(&b); err != nil || !strings.Contains(b.String(), "mounts.allow             /srv/data (read-only), /  (line 12)\n") {
		t.Errorf("shown as %v\n%s", err, b.String())
	}
}

// What the file names replaces what the profile says, also by nothing; the rest is the profile's.
func TestProfileIsTheBeginning(t *testing.T) {
	p := parse(t, "version: 1\nprofile: privileged\nmounts: {allow: []}\negress: {allow: []}\n")
	if len(p.Mounts.Allow) != 0 || !p.Mounts.Volumes || !p.Capabilities.Privileged || p.Egress.Allow == nil {
		t.Errorf("got %+v", p)
	}
	if p.origin("mounts.volumes") != "profile privileged" {
		t.Errorf("mounts.volumes is from %s", p.origin("mounts.volumes"))
	}
}

// Everything that is not understood is an error, with its line and field.
func TestMistakes(t *testing.T) {
	const head = "version: 1\nprofile: standard\n"
	for text, says := range map[string]string{
		"":                                                       "it is empty",
		"# nothing\n":                                            "it is empty",
		"profile: standard\n":                                    "line 1: the file: version is missing",
		"version: 1\n":                                           "profile is missing",
		"version: 2\nprofile: x\n":                               `line 1: version: "2" is not a version that is known`,
		"version: 1.0\nprofile: x\n":                             "line 1: version: want the number 1",
		"version: 1\nprofile: open\n":                            `line 2: profile: there is no profile "open"`,
		"- a\n":                                                  "want fields with values, have a list",
		"a: b: c\n":                                              "mapping values are not allowed",
		head + "\tx: 1\n":                                        "tab character",
		head + "image: {}\n":                                     "line 3: image: there is no such field: there are version",
		head + "images:\n  alow: []\n":                           "line 4: images.alow: there is no such field: there are allow",
		head + "images:\n":                                       "line 3: images: has no value",
		head + "images: {}\nimages: {}\n":                        "line 4: images: is there already, in line 3",
		head + "images: {digests: yes please}\n":                 "line 3: images.digests: want true or false",
		head + "images: {digests: \"true\"}\n":                   "want true or false, have the text",
		head + "images: {allow: alpine}\n":                       "line 3: images.allow: want a list",
		head + "images: {allow: [alpine]}\n":                     "line 3: images.allow[0]: \"alpine\" does not say the registry",
		head + "images: {allow: [docker.io/a**/b]}\n":            "is not a pattern",
		head + "images: {allow: [1]}\n":                          "want a text",
		head + "images: {engines: maybe}\n":                      "not one of trust, refuse",
		head + "images: {signatures: [{}]}\n":                    "keys is missing",
		head + "images: {signatures: [{keys: [/none.pub]}]}\n":   "images.signatures[0].keys[0]: open /none.pub",
		head + "mounts: {allow: [/srv]}\n":                       "line 3: mounts.allow[0]: want fields with values",
		head + "mounts:\n  allow:\n  - readOnly: true\n":         "line 5: mounts.allow[0]: path is missing",
		head + "mounts: {allow: [{path: srv}]}\n":                "not an absolute path",
		head + "mounts: {allow: [{path: /srv/../etc}]}\n":        "such as /etc",
		head + "devices: {allow: [fuse]}\n":                      "neither a path below /dev nor *",
		head + "capabilities: {allow: [net-admin]}\n":            "not a capability",
		head + "networks: {allow: [host]}\n":                     "not one of none, user, namespace",
		head + "networks: {publish: [0]}\n":                      "not a port",
		head + "networks: {publish: [\"0.0.0.0:80\"]}\n":         "not an address of the host",
		head + "networks: {publish: [90-80]}\n":                  "not a port",
		head + "sizes: {memory: lots}\n":                         "not an amount",
		head + "sizes: {memory: -1}\n":                           "not an amount",
		head + "sizes: {cpus: .nan}\n":                           "not a number of processors",
		head + "sizes: {cpus: two}\n":                            "want a number of processors",
		head + "sizes: {pids: 0}\n":                              "not a number of processes",
		head + "egress: {allow: [10.0.0.1/8]}\n":                 "line 3: egress.allow[0]: egress rule",
		head + "users: &u {root: true}\n":                        "has an anchor",
		head + "users: &u {root: true}\nnetworks: *u\n":          "has an anchor",
		head + "users: !!map {root: true}\n":                     "has a tag",
		head + "users: {root: true}\n---\nusers: {root: true}\n": "more than one document",
		head + "? {a: b}\n: c\n":                                 "a field's name is",
		strings.Repeat("#", maxFile+1):                           "more than",
	} {
		p, err := Parse("/p.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "/p.yaml") {
			t.Errorf("%.60q: %v, %v, want an error that says %q", text, p, err, says)
		}
	}
}

// A policy that cannot be read is an error; only one that is not there is none.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	const good = "version: 1\nprofile: standard\n"
	t.Setenv(Variable, "")
	if p, err := Load(filepath.Join(dir, "none")); p != nil || err != nil {
		t.Errorf("without a file: %v, %v", p, err)
	}
	if p, err := Load(write(t, dir, "good", good)); p == nil || err != nil {
		t.Errorf("a good one: %v, %v", p, err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := write(t, dir, "open", good)
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		dir: "not a file", filepath.Join(dir, "fifo"): "not a file", filepath.Join(dir, "link"): "no such file",
		open: "can be changed by others", write(t, dir, "bad", "version: 3\n"): "not a version",
		filepath.Join(dir, "good", "x"): "not a directory",
	} {
		if p, err := Load(path); p != nil || err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "nothing is started") {
			t.Errorf("%s: %v, %v, want an error that says %q", path, p, err, says)
		}
	}
	for value, says := range map[string]string{filepath.Join(dir, "none"): "no such file", "good": "not an absolute path"} {
		t.Setenv(Variable, value)
		if p, err := Load(filepath.Join(dir, "good")); p != nil || err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s=%s: %v, %v", Variable, value, p, err)
		}
	}
	t.Setenv(Variable, filepath.Join(dir, "good"))
	if p, err := Load(filepath.Join(dir, "none")); p == nil || err != nil {
		t.Errorf("named by the environment: %v, %v", p, err)
	}
}

// No text makes it panic, and what it takes decides.
func FuzzParse(f *testing.F) {
	f.Add("version: 1\nprofile: standard\n")
	f.Add("version: 1\nprofile: restricted\nimages:\n  allow: [\"**\"]\n  signatures:\n  - keys: [k]\nmounts:\n  allow:\n  - path: /srv\n    readOnly: true\n")
	f.Add("version: 1\nprofile: privileged\nnetworks: {publish: [\"127.0.0.1:80-90\", 1]}\nsizes: {memory: 1g, cpus: 2, pids: 3}\negress: {allow: [\"any,tcp/1\"]}\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse("/nowhere/policy.yaml", []byte(text))
		if err != nil {
			return
		}
		p.Decide(&Request{
			Engine: &Engine{ID: "x"}, Image: &Image{Names: []string{"docker.io/library/alpine:latest"}},
			Process: &Process{Capabilities: []string{"CAP_CHOWN"}, User: Root}, Mounts: []Mount{{Source: "/etc", ReadOnly: true}}, Volumes: []string{"v"},
			Network: &Network{Mode: "user", Publish: []Port{{Port: 80}}}, Sizes: &Amounts{1, 1, 1},
		}).Err()
		if err := p.Show(new(strings.Builder)); err != nil {
			t.Error(err)
		}
	})
}
