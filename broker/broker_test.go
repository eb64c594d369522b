package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hpke"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"manis/attest"
	"manis/attest/tpm"
	"manis/attest/tpm/tpmtest"
	"manis/audit/ledger"
	"manis/audit/witness"
	"manis/broker/release"
	"manis/broker/rules"
	"manis/trust"
)

func key(seed byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)) }

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

var owner, brokerKey = key(1), key(2)

// scene is a broker, and a machine that asks it.
type scene struct {
	t        *testing.T
	broker   *Broker
	client   Client
	log      string
	envelope []byte
	digest   []byte
	tpm      *tpm.TPM
	channel  hpke.PrivateKey
}

// newScene makes one in which a test secret would be released; change makes something wrong.
func newScene(t *testing.T, change func(*Policy, *trust.Manifest)) *scene {
	s := &scene{t: t, log: filepath.Join(t.TempDir(), "log"), tpm: tpmtest.New(t)}
	policy := Policy{
		Owners: [][]byte{trust.KeyDER(public(owner))}, References: []attest.Reference{*tpmtest.Reference()},
		Secrets: map[string]Secret{"greeting": {Value: []byte("hello"), Test: true}},
	}
	m := &trust.Manifest{
		Format: trust.Format, Version: 2, Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Network: "none", Calls: []string{},
		Containers: []trust.Container{{}}, Broker: &trust.Broker{Key: trust.KeyDER(public(brokerKey))},
		Secrets: []trust.Secret{{Name: "greeting", Path: "/run/greeting", Mode: 0o400}},
	}
	if change != nil {
		change(&policy, m)
	}
	log, err := OpenLog(s.log, brokerKey)
	check(t, err)
	t.Cleanup(func() { log.Close() })
	s.broker, err = New(policy, brokerKey, log)
	check(t, err)
	server := httptest.NewServer(s.broker)
	t.Cleanup(server.Close)
	s.client = Client{URL: server.URL}
	canonical, err := m.Encode()
	check(t, err)
	s.digest = trust.Digest(canonical)
	s.envelope, err = trust.Sign(canonical, owner)
	check(t, err)
	s.channel, err = release.NewKey()
	check(t, err)
	tpmtest.Boot(t, s.tpm, tpmtest.Reference().Events(tpmtest.Cmdline, s.digest, trust.KeyID(public(owner))))
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// attest asks for a challenge and makes evidence for it.
func (s *scene) attest() *attest.Evidence {
	s.t.Helper()
	nonce, err := s.client.Challenge(context.Background())
	check(s.t, err)
	e := &attest.Evidence{
		Nonce: nonce, Channel: s.channel.PublicKey().Bytes(), Signer: trust.KeyDER(public(key(5))),
		Manifest: s.digest, Owner: trust.KeyID(public(owner)), Cmdline: tpmtest.Cmdline,
	}
	check(s.t, s.tpm.Quote(e))
	return e
}

func (s *scene) release(e *attest.Evidence) ([]byte, error) {
	b, err := json.Marshal(e)
	check(s.t, err)
	return s.client.Release(context.Background(), b, s.envelope)
}

func TestRelease(t *testing.T) {
	s := newScene(t, nil)
	e := s.attest()
	answer, err := s.release(e)
	check(t, err)
	binding := attest.Binding(e.Nonce, e.Channel, e.Signer, e.Manifest, e.Owner)
	secrets, r, err := release.Open(answer, public(brokerKey), binding, s.channel)
	check(t, err)
	if string(secrets["greeting"]) != "hello" || r.Hardware != "none" {
		t.Errorf("got %q by %q", secrets, r.Hardware)
	}
	if bytes.Contains(answer, []byte("hello")) {
		t.Error("who carries the answer can read the secret")
	}
	log, err := os.ReadFile(s.log)
	check(t, err)
	if !bytes.Contains(log, []byte(`"secrets":["greeting"]`)) {
		t.Errorf("the log has %s", log)
	}

	t.Run("impostor", func(t *testing.T) {
		forged, err := release.Seal(key(9), e, "none", map[string][]byte{"greeting": []byte("evil")})
		check(t, err)
		b, err := json.Marshal(forged)
		check(t, err)
		if _, _, err := release.Open(b, public(brokerKey), binding, s.channel); !errors.Is(err, release.ErrBroker) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another machine", func(t *testing.T) {
		other, err := release.NewKey()
		check(t, err)
		if _, _, err := release.Open(answer, public(brokerKey), binding, other); err == nil {
			t.Error("another machine can open it")
		}
		if _, _, err := release.Open(answer, public(brokerKey), []byte("other evidence"), s.channel); err == nil {
			t.Error("it was taken as the answer to other evidence")
		}
	})
	t.Run("replayed", func(t *testing.T) {
		if _, err := s.release(e); err == nil || !strings.Contains(err.Error(), "shown before") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("late", func(t *testing.T) {
		e := s.attest()
		s.broker.now = func() time.Time { return time.Now().Add(nonceTime + time.Minute) }
		defer func() { s.broker.now = time.Now }()
		if _, err := s.release(e); err == nil || !strings.Contains(err.Error(), "too late") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("own nonce", func(t *testing.T) {
		e := s.attest()
		e.Nonce = bytes.Repeat([]byte{7}, 32)
		check(t, s.tpm.Quote(e))
		if _, err := s.release(e); err == nil || !strings.Contains(err.Error(), "not for a challenge") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another channel", func(t *testing.T) {
		e := s.attest()
		other, err := release.NewKey()
		check(t, err)
		e.Channel = other.PublicKey().Bytes()
		if _, err := s.release(e); err == nil || !strings.Contains(err.Error(), "these keys") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another manifest", func(t *testing.T) {
		other := newScene(t, func(_ *Policy, m *trust.Manifest) { m.Version = 3 })
		e := s.attest()
		b, err := json.Marshal(e)
		check(t, err)
		if _, err := s.client.Release(context.Background(), b, other.envelope); err == nil || !strings.Contains(err.Error(), "another manifest") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("every refusal is in the log", func(t *testing.T) {
		log, err := os.ReadFile(s.log)
		check(t, err)
		if n := bytes.Count(log, []byte(`"refused"`)); n != 5 {
			t.Errorf("%d refusals in\n%s", n, log)
		}
	})
	t.Run("not without the log", func(t *testing.T) {
		check(t, s.broker.log.Close())
		if _, err := s.release(s.attest()); err == nil || !strings.Contains(err.Error(), "not in the log") {
			t.Errorf("got %v", err)
		}
	})
}

func rule(t *testing.T, file string) *rules.Rules {
	t.Helper()
	r, err := rules.Parse([]byte(file))
	check(t, err)
	return r
}

func TestPolicy(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Policy, *trust.Manifest)
		want   string
	}{
		"expired":           {func(_ *Policy, m *trust.Manifest) { m.Expires = time.Unix(1e9, 0).UTC() }, "valid until"},
		"old":               {func(p *Policy, _ *trust.Manifest) { p.MinVersion = 3 }, "older than"},
		"unknown owner":     {func(p *Policy, _ *trust.Manifest) { p.Owners = [][]byte{trust.KeyDER(public(key(8)))} }, "owner"},
		"another broker":    {func(_ *Policy, m *trust.Manifest) { m.Broker.Key = trust.KeyDER(public(key(8))) }, "another broker"},
		"production secret": {func(p *Policy, _ *trust.Manifest) { p.Secrets["greeting"] = Secret{Value: []byte("x")} }, "hardware: none"},
		"unknown secret":    {func(p *Policy, _ *trust.Manifest) { p.Secrets = nil }, "not for this manifest"},
		"another kernel":    {func(p *Policy, _ *trust.Manifest) { p.References[0].Kernel = p.References[0].Initrd }, "kernel"},
		"a rule":            {func(p *Policy, _ *trust.Manifest) { p.Rules = rule(t, `only-hardware: hardware != "none"`) }, "rule only-hardware"},
		"a rule that holds": {func(p *Policy, _ *trust.Manifest) { p.Rules = rule(t, `version: manifest.version == 2.0`) }, ""},
		"production anyway": {func(p *Policy, _ *trust.Manifest) {
			p.Secrets["greeting"], p.ProductionWithoutHardware = Secret{Value: []byte("x")}, true
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.change)
			_, err := s.release(s.attest())
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestLogIsChained(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(path, brokerKey)
	check(t, err)
	for range 3 {
		check(t, l.Add(Decision{Refused: "no"}))
	}
	check(t, l.Close())
	good, err := os.ReadFile(path)
	check(t, err)
	l, err = OpenLog(path, brokerKey)
	check(t, err)
	check(t, l.Add(Decision{Refused: "no"}))
	check(t, l.Close())
	lines := bytes.SplitAfter(good, []byte("\n"))
	for name, bad := range map[string][]byte{
		"edited":  bytes.Replace(good, []byte(`"no"`), []byte(`"ok"`), 1),
		"deleted": append(bytes.Clone(lines[0]), lines[2]...),
		"cut off": good[:len(good)-5],
	} {
		check(t, os.WriteFile(path, bad, 0o600))
		if l, err := OpenLog(path, brokerKey); err == nil {
			l.Close()
			t.Errorf("%s: it was opened", name)
		}
	}
}

// TestLogInLedger: every decision is in the ledger, cosigned, before there is an answer; a log that is not the ledger's is refused.
func TestLogInLedger(t *testing.T) {
	s := newScene(t, nil)
	dir := t.TempDir()
	l, err := ledger.Open(dir, brokerKey)
	check(t, err)
	defer l.Close()
	w, err := witness.New(t.TempDir(), key(6), l.Key())
	check(t, err)
	server := httptest.NewServer(w)
	defer server.Close()
	by := &witness.Client{URL: server.URL, Key: w.Key()}
	check(t, s.broker.log.Enter(l, by))
	_, err = s.release(s.attest())
	check(t, err)
	if c, err := ledger.OpenCheckpoint(l.Checkpoint(), l.Key(), w.Key()); err != nil || c.Size != 1 {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := s.release(&attest.Evidence{}); err == nil || len(l.Entries()) != 2 {
		t.Errorf("a refusal is not in the ledger: %v, %d entries", err, len(l.Entries()))
	}
	written, err := os.ReadFile(filepath.Join(dir, "entries"))
	check(t, err)
	if bytes.Contains(written, []byte("greeting")) {
		t.Error("the ledger says what was released")
	}
	t.Run("log against ledger", func(t *testing.T) {
		good, err := os.ReadFile(s.log)
		check(t, err)
		lines := bytes.SplitAfter(good, []byte("\n"))
		other := filepath.Join(t.TempDir(), "log")
		o, err := OpenLog(other, brokerKey)
		check(t, err)
		check(t, o.Add(Decision{Refused: "no"}))
		check(t, o.Add(Decision{Refused: "no"}))
		check(t, o.Close())
		replaced, err := os.ReadFile(other)
		check(t, err)
		for name, c := range map[string]struct {
			log  []byte
			want string
		}{"cut": {lines[0], "was cut"}, "replaced": {replaced, "was replaced"}, "in order": {good, ""}} {
			check(t, os.WriteFile(other, c.log, 0o600))
			o, err := OpenLog(other, brokerKey)
			check(t, err)
			if err := o.Enter(l, nil); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %q", name, err, c.want)
			}
			check(t, o.Close())
		}
	})
	t.Run("a line that the ledger lacks", func(t *testing.T) {
		s.broker.log.ledger = nil
		check(t, s.broker.log.Add(Decision{Refused: "no"}))
		check(t, s.broker.log.Enter(l, by))
		if len(l.Entries()) != 3 {
			t.Errorf("%d entries", len(l.Entries()))
		}
	})
	t.Run("not without the witness", func(t *testing.T) {
		server.Close()
		if _, err := s.release(s.attest()); err == nil || !strings.Contains(err.Error(), "not in the log") {
			t.Errorf("got %v", err)
		}
	})
}
