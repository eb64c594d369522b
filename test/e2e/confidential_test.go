package e2e

import (
	"bytes"
	"context"
	"debug/pe"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"manis/place"
)

// confidential is an owner, a broker and reference values in a directory of the test.
type confidential struct {
	*world
	dir string
}

// newConfidential skips where nothing can be measured.
func newConfidential(t *testing.T) *confidential {
	w := newWorld(t)
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("swtpm is not installed (package swtpm)")
	}
	if _, err := place.FindFirmware(); err != nil {
		t.Skip(err)
	}
	guest := place.Guest{Dir: guestDir()}
	kernel, _, err := guest.Measured()
	if err != nil {
		t.Fatal(err)
	}
	if f, err := pe.Open(kernel); err != nil {
		t.Skipf("%s is no EFI program: %v", kernel, err)
	} else {
		f.Close()
	}
	w.load("box")
	c := &confidential{world: w, dir: t.TempDir()}
	for _, name := range []string{"owner", "broker", "stranger"} {
		c.ok("trust", "keygen", c.at(name))
	}
	c.ok("trust", "measure", "-o", c.at("reference.json"))
	if err := os.WriteFile(c.at("greeting"), []byte("hello from the broker\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *confidential) at(name string) string { return filepath.Join(c.dir, name) }

// serve starts the broker and returns its address.
func (c *confidential) serve(args ...string) string {
	c.t.Helper()
	all := append([]string{"trust", "broker", "--listen", "127.0.0.1:0", "--key", c.at("broker.key"), "--log", c.at("broker.log"),
		"--owner", c.at("owner.pub"), "--reference", c.at("reference.json")}, args...)
	cmd := c.command(context.Background(), all...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		c.t.Fatalf("the broker says nothing: %v", err)
	}
	return strings.TrimSpace(string(line[:n]))
}

// sign makes a signed manifest of run's arguments and returns the flags for it.
func (c *confidential) sign(name, owner string, args ...string) []string {
	c.t.Helper()
	c.ok(append([]string{"trust", "manifest", "-o", c.at(name + ".json")}, args...)...)
	c.ok("trust", "sign", "--key", c.at(owner+".key"), "-o", c.at(name+".dsse"), c.at(name+".json"))
	return []string{"--class", "confidential", "--manifest", c.at(name + ".dsse"), "--owner-key", c.at(owner + ".pub")}
}

// runWith is the command line of a run with these flags.
func (c *confidential) runWith(flags []string, args ...string) []string {
	return append(append([]string{"run"}, flags...), args...)
}

// denied runs what the guest refuses, with --rm: the denial is what the user is told, and in the bundle that is left.
func (c *confidential) denied(want string, flags []string, args ...string) {
	c.t.Helper()
	c.fails(126, want, c.runWith(append(flags, "--rm", "--audit-bundle", c.at("denied.json")), args...)...)
	r := c.manis("audit", "verify", "--owner-key", c.at("owner.pub"), "--reference", c.at("reference.json"), c.at("denied.json"))
	if r.code == 0 || !strings.Contains(r.stdout, " deny ") || !strings.Contains(r.stdout, want) || !strings.Contains(r.stderr, "no end") {
		c.t.Errorf("the log of a refusal: %s", r)
	}
	if err := os.Remove(c.at("denied.json")); err != nil {
		c.t.Error(err)
	}
}

// From nothing to a secret and an audit bundle that is verified offline, and what must not work: each
// refusal is the guest's or the broker's, not the command line's.
func TestConfidential(t *testing.T) {
	c := newConfidential(t)
	url := c.serve("--test-secret", "greeting="+c.at("greeting"), "--secret", "real="+c.at("greeting"))
	broker := []string{"--broker-url", url, "--broker-key", c.at("broker.pub")}
	command := []string{"box", "sh", "-c", "cat /run/greeting; echo $A"}
	good := c.sign("good", "owner", append(append([]string{"-e", "A=1", "--calls", "logs", "--secret", "greeting=/run/greeting"}, broker...), command...)...)
	with := func(extra ...string) []string { return append(append([]string{}, good...), extra...) }

	out := c.ok(c.runWith(with("--name", "good", "-e", "A=1"), command...)...)
	c.removeAtEnd("good")
	if !strings.Contains(out, "hello from the broker\n1") {
		t.Fatalf("the container says %q", out)
	}
	c.ok("audit", "bundle", "-o", c.at("bundle.json"), "good")
	verify := []string{"audit", "verify", "--owner-key", c.at("owner.pub"), "--reference", c.at("reference.json")}
	report := c.ok(append(verify, c.at("bundle.json"))...)
	for _, want := range []string{"hardware: none", " manifest ", " attest ", " release ", " create ", " start ", ` exit code="0"`, " end ", "verified"} {
		if !strings.Contains(report, want) {
			t.Errorf("the report has no %q:\n%s", want, report)
		}
	}

	t.Run("bundle", func(t *testing.T) {
		bundle, err := os.ReadFile(c.at("bundle.json"))
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(map[string]json.RawMessage){
			"edited": func(b map[string]json.RawMessage) {
				b["events"] = bytes.Replace(b["events"], []byte(`"code":"0"`), []byte(`"code":"1"`), 1)
			},
			"truncated": func(b map[string]json.RawMessage) {
				var events []json.RawMessage
				json.Unmarshal(b["events"], &events)
				b["events"], _ = json.Marshal(events[:len(events)-1])
			},
			"other manifest": func(b map[string]json.RawMessage) {
				var e map[string]any
				json.Unmarshal(b["manifest"], &e)
				payload, _ := base64.StdEncoding.DecodeString(e["payload"].(string))
				e["payload"] = base64.StdEncoding.EncodeToString(bytes.Replace(payload, []byte("greeting"), []byte("Greeting"), 1))
				b["manifest"], _ = json.Marshal(e)
			},
		} {
			var parts map[string]json.RawMessage
			if err := json.Unmarshal(bundle, &parts); err != nil {
				t.Fatal(err)
			}
			change(parts)
			b, err := json.Marshal(parts)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(c.at("bad.json"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if r := c.manis(append(verify, c.at("bad.json"))...); r.code == 0 || strings.Contains(r.stdout, "verified") {
				t.Errorf("%s: %s", name, r)
			}
		}
	})
	t.Run("argument", func(t *testing.T) {
		c.denied("containers[0].args[2]", with("-e", "A=1"), "box", "sh", "-c", "cat /run/greeting; echo evil")
	})
	t.Run("environment", func(t *testing.T) {
		c.denied("containers[0].env[", with("-e", "A=2"), command...)
	})
	t.Run("user", func(t *testing.T) {
		c.denied("containers[0].user", with("-e", "A=1", "--user", "1000"), command...)
	})
	t.Run("stranger's manifest", func(t *testing.T) {
		flags := c.sign("evil", "stranger", append(append([]string{"--calls", "logs", "--secret", "greeting=/run/greeting"}, broker...), "box", "cat", "/run/greeting")...)
		c.fails(125, "owner is not one that this broker trusts", c.runWith(append(flags, "--rm"), "box", "cat", "/run/greeting")...)
	})
	t.Run("wrong signature", func(t *testing.T) {
		flags := []string{"--rm", "--class", "confidential", "--manifest", c.at("good.dsse"), "--owner-key", c.at("stranger.pub")}
		c.fails(126, "not signed by this owner", c.runWith(flags, command...)...)
	})
	t.Run("production secret", func(t *testing.T) {
		flags := c.sign("real", "owner", append(append([]string{"--secret", "real=/run/real"}, broker...), "box", "true")...)
		c.fails(125, "hardware: none", c.runWith(append(flags, "--rm"), "box", "true")...)
	})
	t.Run("changed boot", func(t *testing.T) {
		b, err := os.ReadFile(c.at("reference.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.at("reference.json"), bytes.Replace(b, []byte("panic=-1"), []byte("panic=-2"), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		c.fails(1, "panic=-1", append(verify, c.at("bundle.json"))...)
	})
}

// A container without a broker runs, too; its host gets nothing of it that the manifest does not permit.
func TestConfidentialHostIsRefused(t *testing.T) {
	c := newConfidential(t)
	flags := c.sign("quiet", "owner", "--network", "none", "box", "sh", "-c", "echo output; sleep 1000")
	c.ok(c.runWith(append(flags, "-d", "--name", "quiet", "--network", "none"), "box", "sh", "-c", "echo output; sleep 1000")...)
	c.removeAtEnd("quiet")
	for _, refused := range [][]string{
		{"exec", "quiet", "true"}, {"top", "quiet"}, {"pause", "quiet"},
		{"cp", "quiet:/etc/hosts", c.at("stolen")}, {"cp", c.at("greeting"), "quiet:/greeting"},
		{"checkpoint", "quiet"}, {"kill", "--signal", "USR1", "quiet"},
	} {
		if r := c.manis(refused...); r.code == 0 {
			t.Errorf("manis %s worked: %s", strings.Join(refused, " "), r)
		}
	}
	if got := c.ok("stats", "--no-stream", "quiet"); !strings.Contains(got, "-- / --") {
		t.Errorf("statistics: %q", got)
	}
	if got := c.ok("logs", "quiet"); got != "" {
		t.Errorf("the log has %q", got)
	}
	c.ok("stop", "-t", "1", "quiet")
	c.ok("audit", "bundle", "-o", c.at("bundle.json"), "quiet")
	report := c.ok("audit", "verify", "--owner-key", c.at("owner.pub"), "--reference", c.at("reference.json"), c.at("bundle.json"))
	for _, request := range []string{"Exec", "Stats", "Processes", "Pause", "CopyOut", "Signal"} {
		if !strings.Contains(report, `request="`+request+`"`) {
			t.Errorf("the log has no refusal of %s:\n%s", request, report)
		}
	}
}
