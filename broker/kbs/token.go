package kbs

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"manis/attest"
	"manis/version"
)

// profile says what the claims of a token mean: those of EAR (draft-ietf-rats-ear), with the members below.
const profile = "tag:github.com,2023:veraison/ear"

// Trust in EAR's vector (draft-ietf-rats-ar4si): what was verified, and how far it can be trusted.
const (
	statusAffirming       = "affirming"
	statusContraindicated = "contraindicated"
	claimNone             = 0  // nothing is said
	claimApproved         = 2  // configuration, hardware: it is known and approved
	claimApprovedBoot     = 3  // executables: those that were started with are known and approved
	claimUnknownHardware  = 97 // hardware: it is not recognized
)

// claims are a token's.
type claims struct {
	Profile   string            `json:"eat_profile"`
	Issuer    string            `json:"iss"`
	Issued    int64             `json:"iat"`
	Expires   int64             `json:"exp"`
	ID        string            `json:"jti"` // digest of the session's id, hex
	Key       map[string]string `json:"tee-pubkey"`
	Verifier  verifier          `json:"ear.verifier-id"`
	Appraised map[string]any    `json:"submods"`
}

type verifier struct {
	Developer string `json:"developer"`
	Build     string `json:"build"`
}

type appraisal struct {
	Status string         `json:"ear.status"`
	Vector map[string]int `json:"ear.trustworthiness-vector"`
	Policy string         `json:"ear.appraisal-policy-id"`
	Shown  annotated      `json:"ear.veraison.annotated-evidence"`
}

// annotated is what was verified.
type annotated struct {
	Runtime struct {
		Nonce string            `json:"nonce"`
		Key   map[string]string `json:"tee-pubkey"`
	} `json:"runtime_data_claims"`
	// InitData is the digest of the manifest, hex.
	InitData string `json:"init_data"`
	*attest.Result
}

// appraise says in EAR's terms what a result is worth: without hardware the whole is contraindicated, whatever else was in order.
func appraise(r *attest.Result) *appraisal {
	a := &appraisal{Status: statusAffirming, Policy: "manis", Vector: map[string]int{
		"instance-identity": claimNone, "configuration": claimApproved, "executables": claimApprovedBoot, "file-system": claimNone,
		"hardware": claimApproved, "runtime-opaque": claimNone, "storage-opaque": claimNone, "sourced-data": claimNone,
	}}
	if r.Hardware == attest.HardwareNone {
		a.Status, a.Vector["hardware"] = statusContraindicated, claimUnknownHardware
	}
	return a
}

// token is the result of an attestation as a JWT, signed by the broker's key.
func (s *Server) token(id string, open *session) (string, error) {
	a, d := appraise(open.machine.Result), digestOf(id)
	a.Shown.Runtime.Nonce, a.Shown.Runtime.Key = open.nonceText(), open.key.jwk
	a.Shown.InitData, a.Shown.Result = hex.EncodeToString(open.manifest), open.machine.Result
	b, err := json.Marshal(&claims{
		Profile: profile, Issuer: s.issuer(), Issued: s.now().Unix(), Expires: open.until.Unix(), ID: hex.EncodeToString(d[:]), Key: open.key.jwk,
		Verifier: verifier{"manis", version.Version}, Appraised: map[string]any{"cpu0": a},
	})
	if err != nil {
		return "", err
	}
	options := (&jose.SignerOptions{EmbedJWK: true}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: s.key}, options)
	if err != nil {
		return "", fmt.Errorf("sign the token: %w", err)
	}
	signed, err := signer.Sign(b)
	if err != nil {
		return "", fmt.Errorf("sign the token: %w", err)
	}
	return signed.CompactSerialize()
}

// readToken names the session of a token that this broker has made. A token is worth what its session is: it ends with it.
func (s *Server) readToken(token string) (digest, error) {
	var d digest
	if len(token) > maxToken {
		return d, fmt.Errorf("the token has more than %d bytes", maxToken)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return d, fmt.Errorf("read the token: %w", err)
	}
	b, err := signed.Verify(s.key.Public().(ed25519.PublicKey))
	if err != nil {
		return d, errors.New("the token is not signed by this broker")
	}
	var c claims
	if err := json.Unmarshal(b, &c); err != nil {
		return d, fmt.Errorf("read the token: %w", err)
	}
	id, err := hex.DecodeString(c.ID)
	if err != nil || len(id) != len(d) || c.Profile != profile {
		return d, errors.New("the token names no session")
	}
	if s.now().Unix() > c.Expires {
		return d, errors.New("the token is out of date")
	}
	copy(d[:], id)
	return d, nil
}
