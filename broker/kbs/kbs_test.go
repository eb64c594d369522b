package kbs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-tpm/tpm2"

	"manis/attest"
	"manis/attest/tpm/tpmtest"
	"manis/broker"
	"manis/broker/release"
	"manis/broker/rules"
	"manis/trust"
)

// TestProtocol goes through the protocol with each key that clients have.
func TestProtocol(t *testing.T) {
	s := newScene(t, nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	bigKey, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	check(t, err)
	for name, k := range map[string]crypto.PrivateKey{"EC P-256": ecKey, "EC P-521": bigKey, "RSA": rsaKey} {
		t.Run(name, func(t *testing.T) {
			before := len(s.decisions())
			c, token := s.attested(k)
			for how, ask := range map[string]func() (int, string){
				"cookie": func() (int, string) { return c.do("GET", "/kbs/v0/resource/default/key/one", "", "") },
				"token": func() (int, string) {
					return s.client(k).do("GET", "/kbs/v0/resource/default/key/one", "", token)
				},
			} {
				status, answer := ask()
				if status != 200 {
					t.Fatalf("by %s: %d, %s", how, status, answer)
				}
				if got := c.open(answer); got != "hello" {
					t.Errorf("by %s: got %q", how, got)
				}
				sameHeader(t, answer)
			}
			made := s.decisions()[before:]
			if len(made) != 3 {
				t.Fatalf("the log has %+v", made)
			}
			for i, d := range made {
				if d.Protocol != "kbs" || d.Hardware != "none" || d.Manifest != fmt.Sprintf("%x", s.digest) || d.Nonce != c.nonce || d.Refused != "" {
					t.Errorf("the log has %+v", d)
				}
				if (i == 0) != (len(d.Secrets) == 0) {
					t.Errorf("line %d names the secrets %q", i, d.Secrets)
				}
			}
		})
	}
}

// sameHeader checks that a client that encodes the protected header anew, with the members of epk by the alphabet, gets the same bytes: these are authenticated.
func sameHeader(t *testing.T, answer string) {
	t.Helper()
	var r struct {
		Protected    string `json:"protected"`
		EncryptedKey string `json:"encrypted_key"`
		IV           string `json:"iv"`
		Ciphertext   string `json:"ciphertext"`
		Tag          string `json:"tag"`
	}
	d := json.NewDecoder(strings.NewReader(answer))
	d.DisallowUnknownFields() // as published: the protocol's Response, without the aad that a header's encoding is
	check(t, d.Decode(&r))
	b, err := base64.RawURLEncoding.DecodeString(r.Protected)
	check(t, err)
	var h struct {
		Alg string         `json:"alg"`
		Enc string         `json:"enc"`
		EPK map[string]any `json:"epk,omitempty"`
	}
	check(t, json.Unmarshal(b, &h))
	if again := document(t, h); again != string(b) {
		t.Errorf("the header is %s, a client makes %s of it", b, again)
	}
}

// TestToken: the token says what was verified, and that no hardware vouches for it.
func TestToken(t *testing.T) {
	s := newScene(t, nil)
	c, token := s.attested(ecKey)
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	check(t, err)
	b, err := signed.Verify(public(brokerKey))
	check(t, err)
	var got struct {
		Exp, Iat int64
		Key      json.RawMessage `json:"tee-pubkey"`
		Submods  map[string]struct {
			Status string         `json:"ear.status"`
			Vector map[string]int `json:"ear.trustworthiness-vector"`
			Shown  struct {
				Hardware string
				InitData string `json:"init_data"`
				Runtime  struct {
					Key json.RawMessage `json:"tee-pubkey"`
				} `json:"runtime_data_claims"`
			} `json:"ear.veraison.annotated-evidence"`
		}
	}
	check(t, json.Unmarshal(b, &got))
	cpu := got.Submods["cpu0"]
	if cpu.Status != "contraindicated" || cpu.Vector["hardware"] != 97 || cpu.Vector["executables"] != 3 || cpu.Shown.Hardware != "none" ||
		cpu.Shown.InitData != fmt.Sprintf("%x", s.digest) || string(cpu.Shown.Runtime.Key) != c.jwk || string(got.Key) != c.jwk || got.Exp <= got.Iat {
		t.Errorf("the token says %s", b)
	}
	if strings.Contains(string(b), c.cookies[0].Value) {
		t.Error("who reads the token learns the session's id")
	}
	t.Run("of another broker", func(t *testing.T) {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key(9)}, nil)
		check(t, err)
		forged, err := signer.Sign(b)
		check(t, err)
		text, err := forged.CompactSerialize()
		check(t, err)
		if status, answer := s.client(ecKey).do("GET", "/kbs/v0/resource/default/key/one", "", text); status != 401 {
			t.Errorf("got %d, %s", status, answer)
		}
	})
}

// TestOwnEvidence: evidence in Manis' form is taken, too, if its channel is the protocol's binding.
func TestOwnEvidence(t *testing.T) {
	s := newScene(t, nil)
	quoted := func(c *client, channel []byte) *attest.Evidence {
		nonce, err := base64.StdEncoding.DecodeString(c.nonce)
		check(t, err)
		e := &attest.Evidence{
			Nonce: nonce, Channel: channel, Signer: trust.KeyDER(public(key(5))), Manifest: s.digest, Owner: trust.KeyID(public(owner)), Cmdline: tpmtest.Cmdline,
		}
		check(t, s.agent.Quote(e))
		return e
	}
	c := s.client(ecKey)
	c.auth()
	if status, answer := c.attest(c.message(quoted(c, c.reportData()))); status != 200 {
		t.Fatalf("got %d, %s", status, answer)
	}
	status, answer := c.do("GET", "/kbs/v0/resource/default/key/one", "", "")
	if status != 200 || c.open(answer) != "hello" {
		t.Errorf("got %d, %s", status, answer)
	}
	t.Run("relayed from the broker's own protocol", func(t *testing.T) {
		// A host hands the challenge of this protocol to a machine's agent, which makes evidence of its own channel.
		channel, err := release.NewKey()
		check(t, err)
		c := s.client(otherKey)
		c.auth()
		if status, answer := c.attest(c.message(quoted(c, channel.PublicKey().Bytes()))); status != 401 || !strings.Contains(answer, "this tee-pubkey") {
			t.Errorf("got %d, %s", status, answer)
		}
	})
}

// TestAttacks: each is refused, says why in the log, and leaves nothing to be asked for.
func TestAttacks(t *testing.T) {
	s := newScene(t, nil)
	for name, c := range map[string]struct {
		change func(c *client) string // answers the challenge
		want   string                 // the detail of the error; "": it is accepted
	}{
		"nothing": {func(c *client) string { return c.message(s.attester.evidence(c.reportData())) }, ""},
		"evidence relayed, with another tee-pubkey": {func(c *client) string {
			e := s.attester.evidence(c.reportData())
			c.key, c.jwk = otherKey, jwkOf(otherKey)
			return c.message(e)
		}, "this tee-pubkey"},
		"evidence of another session": {func(c *client) string {
			other := s.client(ecKey)
			other.auth()
			return c.message(s.attester.evidence(other.reportData()))
		}, "not for this challenge"},
		"a nonce of another session": {func(c *client) string {
			other := s.client(ecKey)
			other.auth()
			c.nonce = other.nonce
			return c.message(s.attester.evidence(c.reportData()))
		}, "not for this session's challenge"},
		"a nonce of one's own": {func(c *client) string {
			c.nonce = base64.StdEncoding.EncodeToString(make([]byte, 32))
			return c.message(s.attester.evidence(c.reportData()))
		}, "not for this session's challenge"},
		"a changed PCR": {func(c *client) string {
			e := s.attester.evidence(c.reportData())
			values := e["tpm_quote"].(map[string]any)["pcrs"].([]string)
			values[attest.PCRManifest] = strings.Repeat("00", 32)
			return c.message(e)
		}, "other values of the PCRs"},
		"another key's signature": {func(c *client) string {
			e := s.attester.evidence(c.reportData())
			other := newAttester(t, tpmtest.Start(t))
			e["ak_public"] = base64.StdEncoding.EncodeToString(other.public)
			return c.message(e)
		}, "not signed by the attestation key"},
		"another machine": {func(c *client) string {
			return c.message(newAttester(t, tpmtest.Start(t)).evidence(c.reportData()))
		}, "PCR 4"},
		"another command line": {func(c *client) string {
			return strings.Replace(c.message(s.attester.evidence(c.reportData())), tpmtest.Cmdline, "init=/bin/sh", 1)
		}, "command line"},
		"another manifest": {func(c *client) string {
			m := trust.Manifest{
				Format: trust.Format, Version: 9, Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Network: "none", Calls: []string{},
				Containers: []trust.Container{{}}, Broker: &trust.Broker{Key: trust.KeyDER(public(brokerKey))}, Secrets: []trust.Secret{{Name: "default.key.not-asked", Path: "/x"}},
			}
			canonical, err := m.Encode()
			check(t, err)
			envelope, err := trust.Sign(canonical, owner)
			check(t, err)
			defer func(old []byte) { s.envelope = old }(s.envelope)
			s.envelope = envelope
			return c.message(s.attester.evidence(c.reportData()))
		}, "PCR 15"},
		"a manifest that nobody has signed": {func(c *client) string {
			m, err := trust.Peek(s.envelope)
			check(t, err)
			canonical, err := m.Encode()
			check(t, err)
			envelope, err := trust.Sign(canonical, key(9))
			check(t, err)
			defer func(old []byte) { s.envelope = old }(s.envelope)
			s.envelope = envelope
			return c.message(s.attester.evidence(c.reportData()))
		}, "owner is not one"},
		"no init data": {func(c *client) string {
			return strings.Replace(c.message(s.attester.evidence(c.reportData())), `"init-data"`, `"other"`, 1)
		}, "there is no init data"},
		"evidence of devices": {func(c *client) string {
			return strings.Replace(c.message(s.attester.evidence(c.reportData())), `"additional_evidence":""`, `"additional_evidence":"{\"nvidia\":1}"`, 1)
		}, "evidence of devices"},
		"no evidence": {func(c *client) string { return c.message(nil) }, "attestation key"},
		"no JSON":     {func(c *client) string { return "{" }, "read the attestation"},
		"a weak key": {func(c *client) string {
			c.jwk = `{"alg":"RSA-OAEP-256","e":"AQAB","kty":"RSA","n":"` + strings.Repeat("_", 171) + `"}`
			return c.message(s.attester.evidence(c.reportData()))
		}, "an RSA key of"},
		"a deprecated algorithm": {func(c *client) string {
			c.jwk = `{"alg":"RSA1_5","e":"AQAB","kty":"RSA","n":"` + strings.Repeat("_", 342) + `"}`
			return c.message(s.attester.evidence(c.reportData()))
		}, "alg"},
		"a point that is not on the curve": {func(c *client) string {
			c.jwk = `{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"` + strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `"}`
			return c.message(s.attester.evidence(c.reportData()))
		}, "tee-pubkey"},
		"a huge body": {func(c *client) string { return strings.Repeat(" ", maxAttestation+1) }, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			client := s.client(ecKey)
			client.auth()
			body := c.change(client)
			before := len(s.decisions())
			status, answer := client.attest(body)
			made := s.decisions()[before:]
			if c.want == "" {
				if status != 200 || len(made) != 1 || made[0].Refused != "" {
					t.Errorf("got %d, %s; the log has %+v", status, answer, made)
				}
				return
			}
			if status == 200 || !strings.Contains(answer, c.want) {
				t.Errorf("got %d, %s, want %q", status, answer, c.want)
			}
			if len(made) != 1 || !strings.Contains(made[0].Refused, c.want) || made[0].Protocol != "kbs" {
				t.Errorf("the log has %+v", made)
			}
			if status, answer := client.do("GET", "/kbs/v0/resource/default/key/one", "", ""); status != 401 {
				t.Errorf("a resource was answered by %d, %s", status, answer)
			}
		})
	}
}

// TestSessions: a challenge is good for one answer, and nothing goes on after its time.
func TestSessions(t *testing.T) {
	s := newScene(t, nil)
	later := func(t *testing.T, d time.Duration) {
		s.server.now = func() time.Time { return time.Now().Add(d) }
		t.Cleanup(func() { s.server.now = time.Now })
	}
	resource := "/kbs/v0/resource/default/key/one"
	t.Run("replayed", func(t *testing.T) {
		c := s.client(ecKey)
		c.auth()
		body := c.message(s.attester.evidence(c.reportData()))
		if status, answer := c.attest(body); status != 200 {
			t.Fatalf("got %d, %s", status, answer)
		}
		if status, answer := c.attest(body); status != 401 || !strings.Contains(answer, "no such session") {
			t.Errorf("got %d, %s", status, answer)
		}
		if status, answer := c.do("GET", resource, "", ""); status != 200 {
			t.Errorf("the first one's session is gone: %d, %s", status, answer)
		}
	})
	t.Run("again after a refusal", func(t *testing.T) {
		c := s.client(ecKey)
		c.auth()
		if status, _ := c.attest("{}"); status != 401 {
			t.Errorf("got %d", status)
		}
		if status, answer := c.attest(c.message(s.attester.evidence(c.reportData()))); status != 401 || !strings.Contains(answer, "no such session") {
			t.Errorf("got %d, %s", status, answer)
		}
	})
	t.Run("without a session", func(t *testing.T) {
		c := s.client(ecKey)
		c.auth()
		body := c.message(s.attester.evidence(c.reportData()))
		c.cookies = nil
		if status, _ := c.attest(body); status != 401 {
			t.Errorf("attest: got %d", status)
		}
		if status, _ := c.do("GET", resource, "", ""); status != 401 {
			t.Errorf("resource: got %d", status)
		}
	})
	t.Run("before attestation", func(t *testing.T) {
		c := s.client(ecKey)
		c.auth()
		if status, _ := c.do("GET", resource, "", ""); status != 401 {
			t.Errorf("got %d", status)
		}
	})
	t.Run("late challenge", func(t *testing.T) {
		c := s.client(ecKey)
		c.auth()
		body := c.message(s.attester.evidence(c.reportData()))
		later(t, sessionTime+time.Minute)
		if status, _ := c.attest(body); status != 401 {
			t.Errorf("got %d", status)
		}
	})
	t.Run("late resource", func(t *testing.T) {
		c, token := s.attested(ecKey)
		later(t, sessionTime+time.Minute)
		if status, _ := c.do("GET", resource, "", token); status != 401 {
			t.Errorf("by token: got %d", status)
		}
		if status, _ := c.do("GET", resource, "", ""); status != 401 {
			t.Errorf("by cookie: got %d", status)
		}
	})
	t.Run("used up", func(t *testing.T) {
		c, _ := s.attested(ecKey)
		for range maxUses {
			if status, answer := c.do("GET", "/kbs/v0/resource/x", "", ""); status != 404 {
				t.Fatalf("got %d, %s", status, answer)
			}
		}
		if status, _ := c.do("GET", resource, "", ""); status != 401 {
			t.Errorf("got %d", status)
		}
	})
}

// TestSessionsAreBounded: the table is full, and empties with time; one address does not fill it.
func TestSessionsAreBounded(t *testing.T) {
	s, now := newSessions(), time.Now()
	for range maxOfPeer {
		_, _, err := s.open("a", now)
		check(t, err)
	}
	if _, _, err := s.open("a", now); err == nil {
		t.Error("one address has more than its share")
	}
	id, _, err := s.open("b", now)
	check(t, err)
	for i := len(s.all); i < maxSessions; i++ {
		_, _, err := s.open(fmt.Sprint(i), now)
		check(t, err)
	}
	if _, _, err := s.open("c", now); err == nil {
		t.Error("the table has no end")
	}
	if s.take(id, now) == nil {
		t.Error("an open session is not there")
	}
	if s.take(id, now) != nil {
		t.Error("a challenge can be taken twice")
	}
	if _, _, err := s.open("a", now.Add(sessionTime+time.Second)); err != nil || len(s.all) != 1 || len(s.peer) != 1 {
		t.Errorf("got %v; %d sessions of %d addresses are left", err, len(s.all), len(s.peer))
	}
}

// TestResources: what a machine gets is what its manifest asks for and the policy releases.
func TestResources(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*broker.Policy, *trust.Manifest)
		path   string
		status int
		want   string
	}{
		"asked for":                   {nil, "default/key/one", 200, ""},
		"not asked for":               {nil, "default/key/not-asked", 403, "does not ask"},
		"neither asked for nor there": {nil, "default/key/unknown", 403, "does not ask"},
		"not there":                   {nil, "default/key/gone", 404, "no such secret"},
		"production":                  {nil, "default/key/production", 403, "hardware: none"},
		"production anyway":           {func(p *broker.Policy, _ *trust.Manifest) { p.ProductionWithoutHardware = true }, "default/key/production", 200, ""},
		"for another manifest": {func(p *broker.Policy, _ *trust.Manifest) {
			p.Secrets["default.key.one"] = broker.Secret{Value: []byte("x"), Test: true, Manifests: []string{"00"}}
		}, "default/key/one", 403, "not for this manifest"},
		"too few parts": {nil, "default/one", 404, "REPOSITORY/TYPE/TAG"},
		"ambiguous":     {nil, "default.key/one/x", 404, "letters"},
		"dots":          {nil, "../key/one", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.change)
			client, _ := s.attested(ecKey)
			before := len(s.decisions())
			status, answer := client.do("GET", "/kbs/v0/resource/"+c.path, "", "")
			if status != c.status || !strings.Contains(answer, c.want) {
				t.Fatalf("got %d, %s, want %d, %q", status, answer, c.status, c.want)
			}
			made := s.decisions()[before:]
			if status == 200 && (len(made) != 1 || len(made[0].Secrets) != 1) || status == 403 && (len(made) != 1 || !strings.Contains(made[0].Refused, c.want)) {
				t.Errorf("the log has %+v", made)
			}
		})
	}
	t.Run("not without the log", func(t *testing.T) {
		s := newScene(t, nil)
		client, _ := s.attested(ecKey)
		check(t, s.logFile.Close())
		if status, answer := client.do("GET", "/kbs/v0/resource/default/key/one", "", ""); status != 500 || !strings.Contains(answer, "not in the log") {
			t.Errorf("got %d, %s", status, answer)
		}
		client.auth()
		if status, answer := client.attest(client.message(s.attester.evidence(client.reportData()))); status != 401 || !strings.Contains(answer, "not in the log") {
			t.Errorf("got %d, %s", status, answer)
		}
	})
}

// TestPolicy: the checks of the broker's own protocol are those of this one.
func TestPolicy(t *testing.T) {
	rule := func(text string) *rules.Rules {
		r, err := rules.Parse([]byte(text))
		check(t, err)
		return r
	}
	for name, c := range map[string]struct {
		change func(*broker.Policy, *trust.Manifest)
		want   string
	}{
		"expired":        {func(_ *broker.Policy, m *trust.Manifest) { m.Expires = time.Unix(1e9, 0).UTC() }, "valid until"},
		"old":            {func(p *broker.Policy, _ *trust.Manifest) { p.MinVersion = 3 }, "older than"},
		"unknown owner":  {func(p *broker.Policy, _ *trust.Manifest) { p.Owners = p.Owners[:1] }, "owner"},
		"another broker": {func(_ *broker.Policy, m *trust.Manifest) { m.Broker.Key = trust.KeyDER(public(key(8))) }, "another broker"},
		"another kernel": {func(p *broker.Policy, _ *trust.Manifest) { p.References[0].Kernel = p.References[0].Initrd }, "PCR 4"},
		"other firmware": {func(p *broker.Policy, _ *trust.Manifest) { p.References[0].Firmware = strings.Repeat("12", 32) }, "PCR 0"},
		"a rule":         {func(p *broker.Policy, _ *trust.Manifest) { p.Rules = rule(`only-hardware: hardware != "none"`) }, "rule only-hardware"},
		"a rule that holds": {func(p *broker.Policy, _ *trust.Manifest) {
			p.Rules = rule(`one: kind == "tpm2" && manifest.version == 2.0`)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.change)
			client := s.client(ecKey)
			client.auth()
			status, answer := client.attest(client.message(s.attester.evidence(client.reportData())))
			if (status == 200) != (c.want == "") || !strings.Contains(answer, c.want) {
				t.Errorf("got %d, %s, want %q", status, answer, c.want)
			}
		})
	}
}

// TestRequests: what is no request of this protocol and version is refused, and opens no session.
func TestRequests(t *testing.T) {
	s := newScene(t, nil)
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		want               string
	}{
		"a client that names no digest":  {"POST", "auth", `{"version":"0.4.0","tee":"tpm","extra-params":""}`, 200, "nonce"},
		"an old version":                 {"POST", "auth", `{"version":"0.1.1","tee":"tpm","extra-params":{}}`, 401, "0.4.0"},
		"a sample":                       {"POST", "auth", `{"version":"0.4.0","tee":"sample","extra-params":{}}`, 401, "sample"},
		"hardware":                       {"POST", "auth", `{"version":"0.4.0","tee":"snp","extra-params":{}}`, 401, "own protocol only"},
		"another digest":                 {"POST", "auth", `{"version":"0.4.0","tee":"tpm","extra-params":{"supported-hash-algorithms":["sm3"]}}`, 401, "sha384"},
		"no JSON":                        {"POST", "auth", `{`, 400, "read the request"},
		"two documents":                  {"POST", "auth", `{"version":"0.4.0","tee":"tpm"}{}`, 400, "more than one"},
		"a huge body":                    {"POST", "auth", strings.Repeat(" ", maxRequest+1), 413, "more than"},
		"GET":                            {"GET", "auth", "", 405, "POST"},
		"registration of a resource":     {"POST", "resource/default/key/one", "evil", 405, "GET"},
		"the administrator's interfaces": {"POST", "resource-policy", "{}", 404, "only auth"},
	} {
		t.Run(name, func(t *testing.T) {
			client := s.client(ecKey)
			status, answer := client.do(c.method, Prefix+c.path, c.body, "")
			if status != c.status || !strings.Contains(answer, c.want) {
				t.Errorf("got %d, %s, want %d, %q", status, answer, c.status, c.want)
			}
			if (len(client.cookies) == 1) != (status == http.StatusOK) {
				t.Errorf("cookies: %v", client.cookies)
			}
		})
	}
}

// FuzzAttestation: whatever a client sends, it is refused or decided on, and nothing but evidence is accepted.
func FuzzAttestation(f *testing.F) {
	f.Add([]byte(`{"init-data":{"format":"toml","body":"[data]\n\"manis.manifest\" = '{}'"},"runtime-data":{"nonce":"","tee-pubkey":{"kty":"EC"}},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`), true)
	f.Add([]byte(`{"version":"0.4.0","tee":"tpm","extra-params":{}}`), false)
	f.Fuzz(func(t *testing.T, b []byte, evidence bool) {
		if !evidence {
			checkRequest(b)
			return
		}
		a, err := parseAttestation(b)
		if err == nil {
			if _, err := a.key.seal([]byte("secret")); err != nil {
				t.Errorf("a key that was read cannot be encrypted for: %v", err)
			}
		}
		var q quote
		if json.Unmarshal(b, &q) == nil {
			if _, err := q.verify(bytes.Repeat([]byte{1}, 48)); err == nil {
				t.Error("it is accepted as a quote")
			}
		}
		if a != nil {
			a.InitData.read()
		}
	})
}

// someQuote is a statement of a TPM (swtpm), of qualifying data that are zeros.
const someQuote = "/1RDR4AYACIACwfTFha6k4Qnmx2DTEx/onoS4eOFxeWkG7UffuwV/MXBACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEUaCz8r9xudngBo4xShN+KfTAAAAABAAsD////ACABneZMkxhlXkIsPQODEWmJbjHwKh105Nj+9XW/Tg11+g=="

// FuzzQuote: whatever a key of the client's own has signed, it is read or refused, and only for the binding.
func FuzzQuote(f *testing.F) {
	public, err := x509.MarshalPKIXPublicKey(ecKey.Public())
	check(f, err)
	message, err := base64.StdEncoding.DecodeString(someQuote)
	check(f, err)
	f.Add(message)
	f.Fuzz(func(t *testing.T, message []byte) {
		q := &quote{Key: public}
		d := sha256.Sum256(message)
		r, v, err := ecdsa.Sign(rand.Reader, ecKey, d[:])
		check(t, err)
		q.Quote.Message, q.Quote.PCRs = message, slices.Repeat([]string{strings.Repeat("00", 32)}, pcrs)
		q.Quote.Signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: v.Bytes()},
		})})
		if _, err := q.signed(); err != nil && base64.StdEncoding.EncodeToString(message) == someQuote {
			t.Errorf("a real quote is not read: %v", err)
		}
		if _, err := q.verify(bytes.Repeat([]byte{1}, 48)); err == nil && !bytes.Contains(message, bytes.Repeat([]byte{1}, 32)) {
			t.Error("it is accepted for another binding")
		}
	})
}
