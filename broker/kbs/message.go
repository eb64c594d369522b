package kbs

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// hashName is the digest of what evidence is bound to: it is the one that clients take where none is named.
const hashName = "sha384"

// request asks for a challenge.
type request struct {
	Version     string          `json:"version"`
	TEE         string          `json:"tee"`
	ExtraParams json.RawMessage `json:"extra-params"`
}

type extraParams struct {
	Supported []string `json:"supported-hash-algorithms,omitempty"`
	Selected  string   `json:"selected-hash-algorithm,omitempty"`
}

type challenge struct {
	Nonce       string      `json:"nonce"`
	ExtraParams extraParams `json:"extra-params"`
}

// attestation answers a challenge.
type attestation struct {
	InitData *initData `json:"init-data"`
	Runtime  struct {
		Nonce string            `json:"nonce"`
		Key   map[string]string `json:"tee-pubkey"`
	} `json:"runtime-data"`
	Evidence struct {
		Primary    json.RawMessage `json:"primary_evidence"`
		Additional string          `json:"additional_evidence"`
	} `json:"tee-evidence"`

	key *teeKey
}

// parse reads one JSON document. Members that are not known are passed over, as they decide nothing.
func parse(what string, b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	err := d.Decode(to)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		err = errors.New("there is more than one document")
	}
	return problem(http.StatusBadRequest, "SerdeError", fmt.Errorf("read the %s: %w", what, err))
}

// checkRequest reads a request and says what keeps this server from answering it.
func checkRequest(body []byte) error {
	var r request
	if err := parse("request", body, &r); err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return problem(http.StatusUnauthorized, "AttestationError", fmt.Errorf(format, args...))
	}
	if r.Version != Version {
		return refuse("the client speaks version %.40q of the protocol, this broker %s", r.Version, Version)
	}
	switch r.TEE {
	case teeTPM:
	case "snp", "tdx":
		return refuse("evidence of the kind %s is taken by the broker's own protocol only: by this one nothing in it is bound to a manifest", r.TEE)
	default:
		return refuse("evidence of the kind %.40q is not taken, only %q", r.TEE, teeTPM)
	}
	// It was a string, and is one yet where there are none.
	var extra extraParams
	if json.Unmarshal(r.ExtraParams, &extra) == nil && len(extra.Supported) > 0 &&
		!slices.ContainsFunc(extra.Supported, func(s string) bool { return strings.EqualFold(s, hashName) }) {
		return refuse("the client has no %s", hashName)
	}
	return nil
}

// parseAttestation reads an attestation, and the key in it.
func parseAttestation(body []byte) (*attestation, error) {
	a := new(attestation)
	if err := parse("attestation", body, a); err != nil {
		return nil, err
	}
	if a.Evidence.Additional != "" && a.Evidence.Additional != "{}" {
		return nil, errors.New("there is evidence of devices (additional_evidence), which this broker does not verify")
	}
	var err error
	a.key, err = parseKey(a.Runtime.Key)
	return a, err
}

// binding is what evidence has to be made over: the SHA-384 of runtime data and additional evidence as canonical JSON (RFC 8785). All strings in it were
// compared with what they may be, so that for this document encoding/json has no other form than the canonical one.
func (a *attestation) binding(nonce string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(map[string]any{"nonce": nonce, "tee-pubkey": a.Runtime.Key, "additional-evidence": a.Evidence.Additional})
	if err != nil {
		return nil, err
	}
	d := sha512.Sum384(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
	return d[:], nil
}
