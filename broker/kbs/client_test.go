package kbs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"manis/attest"
	"manis/attest/tpm"
	"manis/attest/tpm/tpmtest"
	"manis/broker"
	"manis/trust"
)

func key(seed byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)) }

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

var owner, brokerKey = key(1), key(2)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scene is a broker, and a machine with a TPM that enforces a manifest.
type scene struct {
	t        *testing.T
	server   *Server
	url      string
	log      string
	logFile  *broker.Log
	envelope []byte
	digest   []byte
	conn     transport.TPM
	agent    *tpm.TPM
	attester *attester
}

// newScene makes one in which the test secret default.key.one would be released; change makes something wrong.
func newScene(t *testing.T, change func(*broker.Policy, *trust.Manifest)) *scene {
	t.Helper()
	s := &scene{t: t, log: filepath.Join(t.TempDir(), "log"), conn: tpmtest.Start(t)}
	s.agent = tpmtest.Open(t, s.conn)
	policy := broker.Policy{
		Owners: [][]byte{trust.KeyDER(public(key(8))), trust.KeyDER(public(owner))}, References: []attest.Reference{*tpmtest.Reference()},
		Secrets: map[string]broker.Secret{
			"default.key.one": {Value: []byte("hello"), Test: true}, "default.key.not-asked": {Value: []byte("hello"), Test: true},
			"default.key.production": {Value: []byte("hello")},
		},
	}
	m := &trust.Manifest{
		Format: trust.Format, Version: 2, Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Network: "none", Calls: []string{},
		Containers: []trust.Container{{}}, Broker: &trust.Broker{Key: trust.KeyDER(public(brokerKey))},
	}
	for _, name := range []string{"default.key.one", "default.key.production", "default.key.gone"} {
		m.Secrets = append(m.Secrets, trust.Secret{Name: name, Path: "/run/" + name, Mode: 0o400})
	}
	if change != nil {
		change(&policy, m)
	}
	log, err := broker.OpenLog(s.log, brokerKey)
	check(t, err)
	t.Cleanup(func() { log.Close() })
	s.logFile = log
	b, err := broker.New(policy, brokerKey, log)
	check(t, err)
	s.server = New(b, brokerKey)
	server := httptest.NewServer(s.server)
	t.Cleanup(server.Close)
	s.url = server.URL
	canonical, err := m.Encode()
	check(t, err)
	s.digest = trust.Digest(canonical)
	s.envelope, err = trust.Sign(canonical, owner)
	check(t, err)
	tpmtest.Boot(t, s.agent, tpmtest.Reference().Events(tpmtest.Cmdline, s.digest, trust.KeyID(public(owner))))
	s.attester = newAttester(t, s.conn)
	return s
}

// decisions are those in the broker's log.
func (s *scene) decisions() []broker.Decision {
	s.t.Helper()
	b, err := os.ReadFile(s.log)
	check(s.t, err)
	_, err = broker.VerifyLog(b, public(brokerKey))
	check(s.t, err)
	var all []broker.Decision
	for line := range bytes.Lines(b) {
		var l struct{ Decision broker.Decision }
		check(s.t, json.Unmarshal(line, &l))
		all = append(all, l.Decision)
	}
	return all
}

// attester makes evidence as the TPM attester of guest-components does: with an RSA key, over all PCRs.
type attester struct {
	t      *testing.T
	conn   transport.TPM
	handle tpm2.NamedHandle
	public []byte
}

func newAttester(t *testing.T, conn transport.TPM) *attester {
	t.Helper()
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme:  tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
			KeyBits: 2048,
		}),
	})}.Execute(conn)
	check(t, err)
	public, err := made.OutPublic.Contents()
	check(t, err)
	unique, err := public.Unique.RSA()
	check(t, err)
	der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(unique.Buffer), E: 65537})
	check(t, err)
	return &attester{t, conn, tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, der}
}

// evidence is a quote with these qualifying data, cut or filled up to 32 bytes.
func (a *attester) evidence(reportData []byte) map[string]any {
	a.t.Helper()
	var values []string
	for i := 0; i < pcrs; i += 8 {
		mask := make([]byte, 3)
		mask[i/8] = 0xff
		read, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: mask}}}}.Execute(a.conn)
		check(a.t, err)
		for _, v := range read.PCRValues.Digests {
			values = append(values, hex.EncodeToString(v.Buffer))
		}
	}
	data := make([]byte, 32)
	copy(data, reportData)
	quoted, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: a.handle.Handle, Name: a.handle.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: data}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0xff, 0xff, 0xff}}}},
	}.Execute(a.conn)
	check(a.t, err)
	text := base64.StdEncoding.EncodeToString
	return map[string]any{"ak_public": text(a.public), "tpm_quote": map[string]any{
		"signature": text(tpm2.Marshal(quoted.Signature)), "message": text(quoted.Quoted.Bytes()), "pcrs": values,
	}}
}

// client is one of the protocol, written by its description: it shares nothing with the server.
type client struct {
	scene   *scene
	key     crypto.PrivateKey
	jwk     string // canonical
	cookies []*http.Cookie
	nonce   string
}

var ecKey, otherKey *ecdsa.PrivateKey

func init() {
	ecKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	otherKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func (s *scene) client(k crypto.PrivateKey) *client {
	return &client{scene: s, key: k, jwk: jwkOf(k)}
}

// jwkOf is a public key's JWK with its members in the canonical order.
func jwkOf(k crypto.PrivateKey) string {
	text := base64.RawURLEncoding.EncodeToString
	switch k := k.(type) {
	case *rsa.PrivateKey:
		return fmt.Sprintf(`{"alg":"RSA-OAEP-256","e":"AQAB","kty":"RSA","n":"%s"}`, text(k.N.Bytes()))
	case *ecdsa.PrivateKey:
		size := (k.Params().BitSize + 7) / 8
		return fmt.Sprintf(`{"alg":"ECDH-ES+A256KW","crv":"%s","kty":"EC","x":"%s","y":"%s"}`,
			k.Params().Name, text(k.X.FillBytes(make([]byte, size))), text(k.Y.FillBytes(make([]byte, size))))
	}
	return "{}"
}

// do makes a request and returns status and body.
func (c *client) do(method, path, body string, bearer string) (int, string) {
	c.scene.t.Helper()
	req, err := http.NewRequest(method, c.scene.url+path, strings.NewReader(body))
	check(c.scene.t, err)
	for _, k := range c.cookies {
		req.AddCookie(k)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(req)
	check(c.scene.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(c.scene.t, err)
	if set := resp.Cookies(); len(set) > 0 {
		c.cookies = set
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Type, Detail string }
		if json.Unmarshal(b, &e) != nil || !strings.HasPrefix(e.Type, "https://github.com/confidential-containers/kbs/errors/") || e.Detail == "" {
			c.scene.t.Errorf("%s %s: %d with %q, which is no ErrorInformation", method, path, resp.StatusCode, b)
		}
	}
	return resp.StatusCode, string(b)
}

// auth asks for a challenge, as guest-components' client does.
func (c *client) auth() {
	c.scene.t.Helper()
	status, body := c.do("POST", "/kbs/v0/auth", `{"version":"0.4.0","tee":"tpm","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512"]}}`, "")
	var challenge struct {
		Nonce string
		Extra map[string]string `json:"extra-params"`
	}
	if err := json.Unmarshal([]byte(body), &challenge); err != nil || status != 200 || challenge.Extra["selected-hash-algorithm"] != "sha384" {
		c.scene.t.Fatalf("auth: %d, %s", status, body)
	}
	if len(c.cookies) != 1 || c.cookies[0].Name != "kbs-session-id" {
		c.scene.t.Fatalf("auth: cookies %v", c.cookies)
	}
	c.nonce = challenge.Nonce
}

// reportData is what evidence is made over.
func (c *client) reportData() []byte {
	d := sha512.Sum384(fmt.Appendf(nil, `{"additional-evidence":"","nonce":"%s","tee-pubkey":%s}`, c.nonce, c.jwk))
	return d[:]
}

// initData is the scene's, in TOML.
func (s *scene) initData() map[string]string {
	return map[string]string{"format": "toml", "body": fmt.Sprintf(
		"version = \"0.1.0\"\nalgorithm = \"sha-384\"\n[data]\n\"aa.toml\" = \"\"\n\"manis.cmdline\" = \"%s\"\n\"manis.manifest\" = '''%s'''\n", tpmtest.Cmdline, s.envelope)}
}

// message is the answer to the challenge with this evidence.
func (c *client) message(evidence any) string {
	c.scene.t.Helper()
	return document(c.scene.t, map[string]any{
		"init-data": c.scene.initData(), "runtime-data": map[string]any{"nonce": c.nonce, "tee-pubkey": json.RawMessage(c.jwk)},
		"tee-evidence": map[string]any{"primary_evidence": evidence, "additional_evidence": ""},
	})
}

func document(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	return string(b)
}

// attest answers the challenge and returns the token.
func (c *client) attest(body string) (int, string) {
	c.scene.t.Helper()
	status, answer := c.do("POST", "/kbs/v0/attest", body, "")
	if status != 200 {
		return status, answer
	}
	var a struct{ Token string }
	check(c.scene.t, json.Unmarshal([]byte(answer), &a))
	return status, a.Token
}

// attested is a client that has been through it all, and its token.
func (s *scene) attested(k crypto.PrivateKey) (*client, string) {
	s.t.Helper()
	c := s.client(k)
	c.auth()
	status, token := c.attest(c.message(s.attester.evidence(c.reportData())))
	if status != 200 {
		s.t.Fatalf("attest: %d, %s", status, token)
	}
	return c, token
}

// open decrypts a resource.
func (c *client) open(answer string) string {
	c.scene.t.Helper()
	jwe, err := jose.ParseEncryptedJSON(answer, []jose.KeyAlgorithm{jose.ECDH_ES_A256KW, jose.RSA_OAEP_256}, []jose.ContentEncryption{jose.A256GCM})
	check(c.scene.t, err)
	b, err := jwe.Decrypt(c.key)
	check(c.scene.t, err)
	return string(b)
}
