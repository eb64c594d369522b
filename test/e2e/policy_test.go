package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// policy makes text the operator's policy of this world from now on; without text there is none.
func (w *world) policy(text string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "config", "policy.yaml")
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil && text == "" {
		err = os.RemoveAll(path)
	} else if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// What the operator's policy refuses does not start, by whichever command, and leaves nothing; what it allows does, and
// connects to what its rules open. The same connections work without the policy.
func TestPolicy(t *testing.T) {
	t.Parallel()
	w := newLabWorld(t)
	w.net.serve("world", "tcp/"+labServer+":80", "tcp/"+labServer+":81", "udp/"+labServer+":80")
	w.load("box")
	data, secret := filepath.Join(w.dir, "data"), filepath.Join(w.dir, "secret")
	for _, dir := range []string{data, secret} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(data, "file"), []byte("shown\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(data, "link")); err != nil {
		t.Fatal(err)
	}
	all := []string{"tcp/" + labServer + ":80", "tcp/" + labServer + ":81", "udp/" + labServer + ":80"}
	open := func(container string, want ...bool) {
		t.Helper()
		said := w.dials(container, all...)
		for i, at := range all {
			if got := said[at] == "ok world got hello"; got != want[i] {
				t.Errorf("%s to %s: %s, want it open: %v", container, at, said[at], want[i])
			}
		}
	}

	w.ok("create", "--name", "early", "-v", secret+":/s", "box", "sleep", "1000")
	w.policy("version: 1\nprofile: standard\nmounts:\n  allow:\n  - {path: " + data + ", readOnly: true}\negress:\n  allow: [\"" + labServer + ",tcp/80\"]\n")
	t.Run("refused", func(t *testing.T) {
		w := w.in(t)
		before := w.ok("ps", "-aq")
		for _, c := range [][]string{
			{"mounts.allow (line 4)", "run", "--rm", "-v", secret + ":/s", "box", "true"},
			{"mounts.allow (line 4)", "run", "--rm", "-v", data + ":/d", "box", "true"},
			{"mounts.allow (line 4)", "run", "--rm", "-v", data + "/link:/d:ro", "box", "true"},
			{"mounts.allow (line 4)", "create", "-v", data + "/../secret:/d:ro", "box", "true"},
			{"capabilities.allow (profile standard)", "run", "--rm", "--cap-add", "NET_ADMIN", "box", "true"},
			{"capabilities.privileged (profile standard)", "run", "--rm", "--privileged", "box", "true"},
			{"networks.hostLoopback (profile standard)", "run", "--rm", "--allow-host-loopback", "box", "true"},
		} {
			w.fails(125, c[0], c[1:]...)
		}
		// Made before there was the policy.
		w.fails(1, "mounts.allow (line 4)", "start", "early")
		if after := w.ok("ps", "-aq"); after != before {
			t.Errorf("containers before: %q, after: %q", before, after)
		}
	})
	t.Run("check", func(t *testing.T) {
		w := w.in(t)
		w.fails(125, "", "policy", "check", "-v", secret+":/s", "box")
		if out := w.ok("policy", "check", "-v", data+":/d:ro", "box"); !strings.Contains(out, "allowed  mounts.allow (line 4): asked for "+data) {
			t.Errorf("check says %s", out)
		}
		if out := w.ok("policy", "show"); !strings.Contains(out, "egress.allow             "+labServer+",tcp/80  (line 7)") {
			t.Errorf("show says %s", out)
		}
	})
	t.Run("allowed", func(t *testing.T) {
		w := w.in(t)
		w.up("--name", "held", "-v", data+":/d:ro", "box", "sleep", "1000")
		if got := w.sh("held", "cat /d/file"); got != "shown" {
			t.Errorf("the mount holds %q", got)
		}
		open("held", true, false, false)
		w.fails(125, "capabilities.privileged", "exec", "--privileged", "held", "true")
	})
	t.Run("unreadable", func(t *testing.T) {
		w := w.in(t)
		w.policy("version: 1\nprofile: standard\nmount: {}\n")
		w.fails(125, "line 3: mount: there is no such field", "run", "--rm", "box", "true")
		w.fails(1, "nothing is started", "start", "early")
		w.ok("ps")
	})
	w.policy("")
	w.up("--name", "free", "box", "sleep", "1000")
	open("free", true, true, true)
	w.up("--name", "narrow", "--egress", labServer+",tcp", "--egress", "*.example.com", "box", "sleep", "1000")
	open("narrow", true, true, false)
}

// Only images that a key of the operator's has signed start.
func TestPolicySignatures(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	img := image(t, "box")
	name := h.push(img, "team/box:v1")
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	w.policy(fmt.Sprintf("version: 1\nprofile: standard\nimages:\n  allow: [%q]\n  signatures:\n  - keys: [release.pub]\n", h.addr+"/**"))
	if err := os.WriteFile(filepath.Join(w.dir, "config", "release.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644); err != nil {
		t.Fatal(err)
	}
	w.fails(125, "images.allow (line 4)", "create", "docker.io/library/box", "true")
	w.fails(125, "images.signatures (line 5)", "create", name, "true")

	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, digest)
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	artifact, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer:       static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.push(artifact, "team/box:sha256-"+digest.Hex+".sig")
	id := strings.TrimSpace(w.ok("create", name, "true"))
	// Signatures are kept with the image: no registry is needed again.
	h.require("nobody", "knows")
	w.ok("create", name, "true")
	w.ok("create", "--name", "byid", strings.TrimSpace(w.ok("images", "-q", "--no-trunc", name)), "true")
	w.ok("rm", "byid", id)
}

// Engines are told what the policy refuses before there is anything of the container.
func TestBundlePolicy(t *testing.T) {
	w := newBundles(t)
	secret := t.TempDir()
	dir := w.bundle("b", "echo runs", nil)
	mounted := w.bundle("m", "true", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/s", Type: "bind", Source: secret, Options: []string{"bind", "ro"}})
	})
	narrow := w.bundle("n", "true", func(s *specs.Spec) { s.Annotations = map[string]string{"manis.egress": "none"} })
	const head = "version: 1\nprofile: standard\n"
	w.policy(head)
	w.fails(1, "mounts.allow (profile standard)", "create", "--bundle", mounted, "c1")
	w.fails(125, "", "policy", "check", "--bundle", mounted)
	w.fails(1, "does not exist", "state", "c1")
	w.policy(head + "images: {digests: true}\n")
	w.fails(1, "images.engines (profile standard)", "create", "--bundle", dir, "c2")
	w.policy(head + "egress: {allow: [\"10.0.0.0/8\"]}\n")
	w.fails(1, "egress.allow (line 3)", "run", "--bundle", dir, "c3")
	w.policy("version: 1\n")
	w.fails(1, "profile is missing", "run", "--bundle", dir, "c4")
	w.policy("")
	w.fails(1, "annotation manis.egress", "create", "--bundle", narrow, "c5")
	if out := w.ok("list", "-q"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
	w.policy(head + "images: {digests: true, engines: trust}\n")
	if out := w.ok("run", "--bundle", dir, "c6"); out != "runs" {
		t.Errorf("it says %q", out)
	}
}

// swappable makes a directory data/given, beside one that is secret, each with a file that says its name, and a policy that allows what is in
// data. What scripts put in the place of the first one then is the secret one.
func (w *world) swappable() (given string, scripts map[string]string) {
	w.t.Helper()
	dir := w.t.TempDir()
	given, secret := filepath.Join(dir, "data", "given"), filepath.Join(dir, "secret")
	for _, name := range []string{given, secret} {
		err := os.MkdirAll(name, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(name, "content"), []byte(filepath.Base(name)+"\n"), 0o644)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	w.policy("version: 1\nprofile: standard\nmounts: {allow: [{path: " + filepath.Dir(given) + "}]}\n")
	away := "mv " + given + " " + dir + "/old && "
	return given, map[string]string{"link": away + "ln -s " + secret + " " + given, "directory": away + "mv " + secret + " " + given}
}

// Another directory that comes to a path after it was allowed is not mounted by the OCI runtime: here a hook puts it there, which runs between
// the decision and the mount.
func TestBundlePolicySwapped(t *testing.T) {
	w := newBundles(t)
	run := func(id, given, hook string) (args []string) {
		return []string{"run", "--bundle", w.bundle(id, "cat /m/content", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "bind", Source: given, Options: []string{"bind", "ro"}})
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", hook}}}}
		}), id}
	}
	given, scripts := w.swappable()
	if out := w.ok(run("undisturbed", given, "true")...); out != "given" {
		t.Errorf("undisturbed it says %q", out)
	}
	for how := range scripts {
		given, scripts := w.swappable()
		w.fails(1, "does not lead to what was decided on", run(how, given, scripts[how])...)
		if b, err := os.ReadFile(filepath.Join(given, "content")); string(b) != "secret\n" {
			t.Errorf("%s: the hook has put nothing there: %q, %v", how, b, err)
		}
	}
	if out := w.ok("list", "-q"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
}

// Nor does a container have it when its restart policy starts it again.
func TestPolicySwapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	given, scripts := w.swappable()
	word := filepath.Join(filepath.Dir(given), "word")
	if err := os.Mkdir(word, 0o755); err != nil {
		t.Fatal(err)
	}
	w.up("--name", "c", "--restart", "on-failure:2", "-v", given+":/m:ro", "-v", word+":/word:ro", "box",
		"sh", "-c", "cat /m/content; while ! [ -e /word/end ]; do sleep 0.1; done; exit 4")
	eventually(t, "its output", func() bool { return w.ok("logs", "c") == "given" })
	if out, err := exec.Command("sh", "-c", scripts["link"]+" && touch "+word+"/end").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	eventually(t, "the refusals", func() bool { return w.field("c", "{{.State.Status}} {{.RestartCount}}") == "exited 2" })
	if out := w.ok("logs", "c"); out != "given" {
		t.Errorf("it has said %q", out)
	}
	if got := w.field("c", "{{.State.Error}}"); !strings.Contains(got, "mounts.allow (line 3): asked for "+given) {
		t.Errorf("the error is %q", got)
	}
}
