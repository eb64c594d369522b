package policy

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"manis/image/signature"
	"manis/network/egress"
	"manis/origin"
)

// refuses checks which rules refuse a request; none: it is allowed.
func refuses(t *testing.T, p *Policy, what string, r *Request, rules ...string) {
	t.Helper()
	d := p.Decide(r)
	var got []string
	for _, f := range d.Findings {
		if f.Refused {
			got = append(got, f.Rule)
		}
	}
	if strings.Join(got, " ") != strings.Join(rules, " ") {
		t.Errorf("%s: refused by %q, want %q", what, got, rules)
	}
	err := d.Err()
	if (err != nil) != (len(rules) > 0) || err != nil && !errors.Is(err, ErrRefused) {
		t.Errorf("%s: %v", what, err)
	}
	for _, rule := range rules {
		if !strings.Contains(err.Error(), rule+" (") {
			t.Errorf("%s: the refusal does not name %s: %v", what, rule, err)
		}
	}
}

func usualRequest() *Request {
	return &Request{
		Image:   &Image{Asked: "alpine", Names: []string{"docker.io/library/alpine:latest"}},
		Process: &Process{Capabilities: append([]string{}, usual...), Escalation: true, User: Root},
		Network: &Network{Mode: "user", Publish: []Port{{Port: 8080}}},
		Sizes:   &Amounts{MemoryBytes: 512 << 20, MilliCPUs: 2000, Pids: -1},
	}
}

// The profiles are what docs/POLICY.md says that they are.
func TestProfiles(t *testing.T) {
	policies := make(map[string]*Policy)
	for _, name := range Profiles() {
		policies[name] = parse(t, "version: 1\nprofile: "+name+"\n")
	}
	modest := usualRequest()
	modest.Process = &Process{Capabilities: []string{"CAP_NET_BIND_SERVICE"}, User: NotRoot}
	modest.Network.Publish = nil
	privileged := usualRequest()
	privileged.Process = &Process{Capabilities: []string{"SYS_ADMIN"}, Privileged: true, Escalation: true, Unfiltered: true, User: Root}
	privileged.Mounts = []Mount{{Source: "/etc"}}
	privileged.Devices = []string{"/dev/fuse"}
	privileged.Network.HostLoopback, privileged.Network.LinkLocal = true, true
	for _, c := range []struct {
		profile, what string
		r             *Request
		rules         []string
	}{
		{Restricted, "modest", modest, nil},
		{Restricted, "usual", usualRequest(), []string{"capabilities.allow", "capabilities.escalation", "users.root", "networks.publish"}},
		{Standard, "modest", modest, nil},
		{Standard, "usual", usualRequest(), nil},
		{Standard, "privileged", privileged, []string{"mounts.allow", "devices.allow", "capabilities.privileged", "capabilities.allow", "networks.hostLoopback", "networks.linkLocal"}},
		{Privileged, "privileged", privileged, nil},
	} {
		refuses(t, policies[c.profile], c.profile+", "+c.what, c.r, c.rules...)
	}
	refuses(t, nil, "no policy", privileged)
}

func TestImages(t *testing.T) {
	const head = "version: 1\nprofile: standard\nimages:\n"
	ask := func(names ...string) *Request { return &Request{Image: &Image{Asked: names[0], Names: names}} }
	p := parse(t, head+`  allow: ["docker.io/library/*", "*.example.com/team-*/**", "localhost:5000/**:v1*", "quay.io/x/y"]`)
	for name, ok := range map[string]bool{
		"docker.io/library/alpine:latest": true, "docker.io/library/alpine@sha256:00": true, "docker.io/other/alpine:latest": false,
		"docker.io/library/a/b:latest": false, "evil.test/docker.io/library/alpine:latest": false,
		"eu.example.com/team-a/x:1": true, "eu.example.com/team-a/x/y/z:1": true, "example.com/team-a/x:1": false, "eu.example.com/other/x:1": false,
		"localhost:5000/a/b:v1.2": true, "localhost:5000/a/b:v2": false, "localhost:5000/a@sha256:00": false, "quay.io/x/y:z": true, "quay.io/x/y/z:z": false,
	} {
		if ok {
			refuses(t, p, name, ask(name))
		} else {
			refuses(t, p, name, ask(name), "images.allow")
		}
	}
	refuses(t, p, "one of several names", ask("evil.test/x:1", "quay.io/x/y:1"))
	refuses(t, p, "no name", &Request{Image: &Image{Asked: "0123"}}, "images.allow")
	p = parse(t, head+"  digests: true")
	refuses(t, p, "by tag", ask("docker.io/library/alpine:latest"), "images.digests")
	r := ask("docker.io/library/alpine@sha256:00")
	r.Image.ByDigest = true
	refuses(t, p, "by digest", r)
}

// Which image a container of an engine is from is not known: with rules for images the operator has to say what that means.
func TestImagesOfEngines(t *testing.T) {
	bundle := &Request{Engine: &Engine{ID: "c"}, Process: &Process{User: NotRoot}}
	pause := &Request{Engine: &Engine{NoImage: true}, Network: &Network{Mode: "namespace"}}
	const head = "version: 1\nprofile: standard\n"
	refuses(t, parse(t, head), "no rules", bundle)
	for _, rules := range []string{`allow: ["quay.io/**"]`, "digests: true"} {
		refuses(t, parse(t, head+"images: {"+rules+"}\n"), rules, bundle, "images.engines")
		refuses(t, parse(t, head+"images: {"+rules+"}\n"), rules+", pause", pause)
		refuses(t, parse(t, head+"images: {engines: trust, "+rules+"}\n"), rules+", trusted", bundle)
	}
}

func TestSignatures(t *testing.T) {
	dir := t.TempDir()
	private, public := newKey(t)
	other, _ := newKey(t)
	write(t, dir, "a.pub", public)
	p, err := Parse(filepath.Join(dir, "p"), []byte("version: 1\nprofile: standard\nimages:\n  signatures:\n  - {images: [\"quay.io/**\"], keys: [a.pub]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + strings.Repeat("1", 64)
	sign := func(key *ecdsa.PrivateKey, digest string) signature.Signed {
		payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, digest)
		sum := sha256.Sum256(payload)
		sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return signature.Signed{Payload: payload, Signature: sig}
	}
	ask := func(name string, list ...signature.Signed) *Request {
		return &Request{Image: &Image{Asked: name, Names: []string{name}, Digests: []string{digest}, Signatures: list}}
	}
	refuses(t, p, "another repository", ask("docker.io/library/x:1"))
	refuses(t, p, "none", ask("quay.io/x:1"), "images.signatures")
	refuses(t, p, "another key", ask("quay.io/x:1", sign(other, digest)), "images.signatures")
	refuses(t, p, "another image", ask("quay.io/x:1", sign(private, "sha256:"+strings.Repeat("2", 64))), "images.signatures")
	refuses(t, p, "one that counts", ask("quay.io/x:1", sign(other, digest), sign(private, digest)))
	early := ask("quay.io/x:1")
	early.Image.Remote = true
	refuses(t, p, "before there is an image", early)
}

// Paths are what they lead to: neither .. nor links get out of what is allowed, and what is beside it is not in it.
func TestMounts(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"data/sub", "data2", "shown", "secret"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"data/out": "../secret", "data/in": "sub", "alias": "data", "rule": "data2"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir, "data/file", "")
	p := parse(t, fmt.Sprintf("version: 1\nprofile: standard\nmounts:\n  allow:\n  - path: %s/data\n  - {path: %s/shown, readOnly: true}\n  - {path: %s/rule}\n  - {path: %s/missing}\n", dir, dir, dir, dir))
	for _, c := range []struct {
		path     string
		readOnly bool
		ok       bool
	}{
		{"data", false, true}, {"data/sub", false, true}, {"data/file", false, true}, {"data/in", false, true}, {"alias/sub", false, true},
		{"data/out", false, false}, {"data/out", true, false}, {"data/../secret", true, false}, {"secret", true, false}, {"", true, false},
		{"shown", true, true}, {"shown", false, false}, {"data2", false, true}, {"missing", true, false}, {"data/nothing", true, false},
	} {
		r := &Request{Mounts: []Mount{{Source: dir + "/" + c.path, ReadOnly: c.readOnly}}}
		if c.ok {
			refuses(t, p, c.path, r)
		} else {
			refuses(t, p, c.path, r, "mounts.allow")
		}
	}
	// What was opened counts, whatever the path has come to lead to.
	if err := os.Mkdir(dir+"/data/given", 0o755); err != nil {
		t.Fatal(err)
	}
	open := func(path string) Mount {
		t.Helper()
		f, err := origin.Open(dir + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return Mount{Source: dir + "/data/given", Opened: f}
	}
	given := open("/data/given")
	refuses(t, p, "opened", &Request{Mounts: []Mount{given}})
	refuses(t, p, "a secret opened by an allowed path", &Request{Mounts: []Mount{open("/data/out")}}, "mounts.allow")
	if err := os.Rename(dir+"/data/given", dir+"/elsewhere"); err != nil {
		t.Fatal(err)
	}
	refuses(t, p, "opened, and renamed to where nothing is allowed", &Request{Mounts: []Mount{given}}, "mounts.allow")
	p = parse(t, "version: 1\nprofile: standard\nmounts: {volumes: false}\n")
	refuses(t, p, "a volume", &Request{Volumes: []string{"v"}}, "mounts.volumes")
}

// An engine's own files are those of this container, where engines keep them.
func TestFilesOfEngines(t *testing.T) {
	e := &Engine{ID: "c1", Sandbox: "s1", Pod: "p1"}
	for path, want := range map[string]bool{
		"/var/lib/kubelet/pods/p1/volumes/kubernetes.io~empty-dir/x": true,
		"/var/lib/kubelet/pods/p2/volumes/kubernetes.io~secret/x":    false,
		"/var/lib/kubelet/pods": false,
		"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/resolv.conf":         true,
		"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s2/resolv.conf":         false,
		"/var/lib/docker/containers/c1/hosts":                                            true,
		"/var/lib/docker/containers/c1/mounts/shm":                                       true,
		"/var/lib/docker/containers/c2/hosts":                                            false,
		"/var/lib/docker/volumes/v/_data":                                                true,
		"/var/lib/docker/volumes/v/_data/x":                                              true,
		"/var/lib/docker/volumes":                                                        false,
		"/home/u/.local/share/containers/storage/overlay-containers/9/userdata/hostname": true,
		"/run/containers/storage/vfs-containers/9/userdata/hosts":                        true,
		"/var/lib/containers/storage/overlay/9/diff":                                     false,
		"/etc/shadow": false, "/": false,
	} {
		if got := e.owns(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	for _, e := range []*Engine{nil, {}, {ID: "*", Sandbox: "*", Pod: "**"}} {
		for _, path := range []string{"/var/lib/kubelet/pods/p1/x", "/var/lib/docker/containers/c1/hosts"} {
			if e.owns(path) {
				t.Errorf("%+v: %s is its own", e, path)
			}
		}
	}
}

func TestNetworksSizesAndUsers(t *testing.T) {
	const head = "version: 1\nprofile: standard\n"
	p := parse(t, head+"networks: {allow: [none, user], publish: [8080, \"127.0.0.1:9000-9010\"]}\nsizes: {memory: 1g, cpus: 1, pids: 10}\nusers: {root: false}\n")
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		what  string
		r     *Request
		rules []string
	}{
		{"a namespace", &Request{Network: &Network{Mode: "namespace"}}, []string{"networks.allow"}},
		{"a port", &Request{Network: &Network{Mode: "user", Publish: []Port{{Port: 8080}, {Address: loopback, Port: 8080}}}}, nil},
		{"a port of one address", &Request{Network: &Network{Mode: "user", Publish: []Port{{Address: loopback, Port: 9005}}}}, nil},
		{"it at all addresses", &Request{Network: &Network{Mode: "user", Publish: []Port{{Port: 9005}}}}, []string{"networks.publish"}},
		{"it at 0.0.0.0", &Request{Network: &Network{Mode: "user", Publish: []Port{{Address: netip.IPv4Unspecified(), Port: 9005}}}}, []string{"networks.publish"}},
		{"another port", &Request{Network: &Network{Mode: "user", Publish: []Port{{Port: 80}}}}, []string{"networks.publish"}},
		{"any port", &Request{Network: &Network{Mode: "user", Publish: []Port{{}}}}, []string{"networks.publish"}},
		{"what fits", &Request{Sizes: &Amounts{1 << 30, 1000, 10}}, nil},
		{"what does not", &Request{Sizes: &Amounts{1<<30 + 1, 1001, 11}}, []string{"sizes.memory", "sizes.cpus", "sizes.pids"}},
		{"without a limit", &Request{Sizes: &Amounts{Pids: -1}}, []string{"sizes.pids"}},
		{"not asked", &Request{Sizes: &Amounts{}}, nil},
		{"root", &Request{Process: &Process{User: Root}}, []string{"users.root"}},
		{"a name", &Request{Process: &Process{User: Named}}, []string{"users.root"}},
		{"a number", &Request{Process: &Process{User: NotRoot}}, nil},
		{"an exec that says nothing", &Request{Process: &Process{}}, nil},
	} {
		refuses(t, p, c.what, c.r, c.rules...)
	}
}

// Rules for connections can be kept by our own stack alone, and a user's rules only narrow the operator's.
func TestEgress(t *testing.T) {
	p := parse(t, "version: 1\nprofile: standard\negress: {allow: [\"10.0.0.0/8\"]}\n")
	refuses(t, p, "user", &Request{Network: &Network{Mode: "user"}})
	refuses(t, p, "none", &Request{Network: &Network{Mode: "none"}})
	refuses(t, p, "namespace", &Request{Network: &Network{Mode: "namespace"}}, "egress.allow")
	asked, err := egress.ParseAll("any,tcp")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		p        *Policy
		asked    egress.Rules
		to       string
		protocol egress.Protocol
		want     bool
	}{
		{nil, nil, "192.0.2.1:80", egress.UDP, true}, {nil, asked, "192.0.2.1:80", egress.UDP, false}, {nil, asked, "192.0.2.1:80", egress.TCP, true},
		{p, nil, "10.0.0.1:80", egress.UDP, true}, {p, asked, "10.0.0.1:80", egress.UDP, false}, {p, asked, "10.0.0.1:80", egress.TCP, true},
		{p, asked, "192.0.2.1:80", egress.TCP, false},
	} {
		if got := egress.NewGuard(c.p.EgressOf(c.asked)).Allows(c.protocol, at(c.to)); got != c.want {
			t.Errorf("policy %v, asked for %v: %s to %s: %v, want %v", c.p != nil, c.asked, c.protocol, c.to, got, c.want)
		}
	}
}

// A refusal says where the rule is, what was asked for and what is allowed.
func TestRefusalSaysWhy(t *testing.T) {
	p := parse(t, "version: 1\nprofile: standard\nmounts:\n  allow:\n  - {path: /srv, readOnly: true}\n")
	err := p.Check(&Request{Mounts: []Mount{{Source: "/etc"}}, Devices: []string{"/dev/fuse"}})
	const want = "the policy does not allow it: /policy.yaml: mounts.allow (line 4): asked for /etc, writable; allowed: /srv read-only; " +
		"and devices.allow (profile standard): asked for the device /dev/fuse; allowed: none"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
