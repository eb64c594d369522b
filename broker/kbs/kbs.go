// Package kbs has a broker answer clients of the Key Broker Service of Confidential Containers, by version 0.4.0 of its attestation protocol
// (github.com/confidential-containers/trustee, kbs/docs/kbs_attestation_protocol.md): request, challenge, attestation, and then resources,
// encrypted for the key that the evidence has vouched for. It reads the protocol and makes its answers; who gets what is the broker's to decide,
// by the same manifests, reference values, rules and log as for the broker's own protocol.
//
// Evidence is that of a TPM (tee "tpm"), see evidence.go. The document with the init data carries the manifest, see initdata.go.
package kbs

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"manis/broker"
	"manis/trust"
)

// Version is that of the protocol. Clients of other versions bind their keys to evidence in other ways, and are refused.
const Version = "0.4.0"

// Prefix is where the endpoints are.
const Prefix = "/kbs/v0/"

// protocol is its name in the broker's log.
const protocol = "kbs"

// cookie holds a session's id.
const cookie = "kbs-session-id"

// Bounds of what is read, bytes.
const (
	maxRequest     = 16 << 10
	maxAttestation = 512 << 10
	maxToken       = 12 << 10
)

// maxAppraisals are the attestations that are read at a time: the documents in one can take a hundred times their size while they are read.
const maxAppraisals = 8

// Server answers the endpoints auth, attest and resource. It can be used by several at once.
type Server struct {
	broker   *broker.Broker
	key      ed25519.PrivateKey
	sessions *sessions
	working  chan struct{} // as many as appraisals under way
	now      func() time.Time
}

// New makes a server for a broker and its key, which signs the tokens.
func New(b *broker.Broker, key ed25519.PrivateKey) *Server {
	return &Server{broker: b, key: key, sessions: newSessions(), working: make(chan struct{}, maxAppraisals), now: time.Now}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer any
	var err error
	path, ok := strings.CutPrefix(r.URL.Path, Prefix)
	resource, isResource := strings.CutPrefix(path, "resource/")
	switch {
	case ok && path == "auth" && r.Method == http.MethodPost:
		answer, err = s.auth(w, r)
	case ok && path == "attest" && r.Method == http.MethodPost:
		answer, err = s.attest(w, r)
	case ok && isResource && r.Method == http.MethodGet:
		answer, err = s.resource(r, resource)
	case ok && (path == "auth" || path == "attest" || isResource):
		err = problem(http.StatusMethodNotAllowed, "InvalidRequestPath", errors.New("this method is not served: POST auth and attest, GET resource"))
	default:
		err = problem(http.StatusNotFound, "PluginNotFound", errors.New("only auth, attest and resource are served"))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		p := asProblem(err)
		w.WriteHeader(p.status)
		answer = p.information()
	}
	json.NewEncoder(w).Encode(answer)
}

// auth opens a session with a challenge.
func (s *Server) auth(w http.ResponseWriter, r *http.Request) (any, error) {
	body, err := read(w, r, maxRequest)
	if err != nil {
		return nil, err
	}
	if err := checkRequest(body); err != nil {
		return nil, err
	}
	id, open, err := s.sessions.open(peer(r), s.now())
	if err != nil {
		return nil, problem(http.StatusServiceUnavailable, "AttestationError", err)
	}
	setCookie(w, id, open.until)
	return &challenge{Nonce: open.nonceText(), ExtraParams: extraParams{Selected: hashName}}, nil
}

// attest takes the evidence for a session's challenge, and answers with a token. A challenge is good for one try.
func (s *Server) attest(w http.ResponseWriter, r *http.Request) (any, error) {
	id := sessionID(r)
	open := s.sessions.take(id, s.now())
	if open == nil {
		return nil, problem(http.StatusUnauthorized, "AttestationError", errors.New("there is no such session with an open challenge: begin with auth"))
	}
	body, err := read(w, r, maxAttestation)
	if err == nil {
		err = s.appraise(open, body)
	} else {
		err = s.broker.Refuse(protocol, open.nonce, err)
	}
	if err != nil {
		return nil, as(http.StatusUnauthorized, "AttestationError", err)
	}
	open.until = s.now().Add(sessionTime)
	token, err := s.token(id, open)
	if err != nil {
		return nil, problem(http.StatusInternalServerError, "AttestationError", err)
	}
	s.sessions.attested(id, open)
	setCookie(w, id, open.until)
	return map[string]string{"token": token}, nil
}

// appraise has the broker decide on an attestation; each refusal is in its log.
func (s *Server) appraise(open *session, body []byte) error {
	s.working <- struct{}{}
	defer func() { <-s.working }()
	proof, a, err := s.proof(open, body)
	if err != nil {
		return s.broker.Refuse(protocol, open.nonce, err)
	}
	open.key, open.manifest = a.key, proof.Evidence.Manifest
	open.machine, err = s.broker.Admit(proof)
	return err
}

// resource releases a secret to the key of a session.
func (s *Server) resource(r *http.Request, path string) (any, error) {
	open, err := s.authenticated(r)
	if err != nil {
		return nil, err
	}
	name, err := secretName(path)
	if err != nil {
		return nil, problem(http.StatusNotFound, "InvalidRequestPath", err)
	}
	value, err := open.machine.Release(name)
	switch {
	case errors.Is(err, broker.ErrRefused):
		return nil, problem(http.StatusForbidden, "PolicyDeny", err)
	case errors.Is(err, broker.ErrNoSecret):
		return nil, problem(http.StatusNotFound, "InvalidRequestPath", err)
	case err != nil:
		return nil, problem(http.StatusInternalServerError, "PluginInternalError", err)
	}
	answer, err := open.key.seal(value)
	if err != nil {
		return nil, problem(http.StatusInternalServerError, "JweError", err)
	}
	return answer, nil
}

// authenticated is the attested session of a request, by its cookie or by the token in its place.
func (s *Server) authenticated(r *http.Request) (*session, error) {
	var open *session
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		known, err := s.readToken(bearer)
		if err != nil {
			return nil, problem(http.StatusUnauthorized, "TokenVerifierError", err)
		}
		open = s.sessions.use(known, s.now())
	} else {
		open = s.sessions.use(digestOf(sessionID(r)), s.now())
	}
	if open == nil {
		return nil, problem(http.StatusUnauthorized, "TokenNotFound", errors.New("there is no attested session: begin with auth, then attest"))
	}
	return open, nil
}

// secretName is the secret's for a resource, REPOSITORY/TYPE/TAG: its parts with dots between them. Names in manifests have no slashes; parts with
// dots of their own are refused, so that each resource has one name and each name one resource.
func secretName(path string) (string, error) {
	parts := strings.Split(path, "/")
	if len(parts) != 3 {
		return "", errors.New("a resource is REPOSITORY/TYPE/TAG")
	}
	for _, p := range parts {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return "", errors.New("the parts of a resource REPOSITORY/TYPE/TAG have letters, digits, '-' and '_' only: its secret is named REPOSITORY.TYPE.TAG")
		}
	}
	return strings.Join(parts, "."), nil
}

// read returns a body within bounds.
func read(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
		return nil, problem(http.StatusRequestEntityTooLarge, "SerdeError", fmt.Errorf("the request has more than %d bytes", limit))
	}
	if err != nil {
		return nil, problem(http.StatusBadRequest, "SerdeError", fmt.Errorf("read the request: %w", err))
	}
	return b, nil
}

func sessionID(r *http.Request) string {
	c, err := r.Cookie(cookie)
	if err != nil {
		return ""
	}
	return c.Value
}

func setCookie(w http.ResponseWriter, id string, until time.Time) {
	http.SetCookie(w, &http.Cookie{Name: cookie, Value: id, Path: strings.TrimSuffix(Prefix, "/"), Expires: until, HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

// peer is who a request comes from, without the port.
func peer(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// issuer names the broker in tokens, by its key.
func (s *Server) issuer() string {
	return "manis-broker:" + trust.KeyID(s.key.Public().(ed25519.PublicKey))
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
