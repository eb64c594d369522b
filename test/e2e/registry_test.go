package e2e

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// hub is a registry on loopback, over TCP, whose answers a test may spoil.
type hub struct {
	t    testing.TB
	addr string // host:port
	mu   sync.Mutex
	// blobs counts the requests for blobs' content.
	blobs int
	// user and password are asked for when set.
	user, password string
	// between is called with each request for a blob, before its answer.
	between func(w http.ResponseWriter, r *http.Request) (answered bool)
}

func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{t: t}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		user, password, between := h.user, h.password, h.between
		isBlob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
		if isBlob {
			h.blobs++
		}
		h.mu.Unlock()
		if user != "" {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusUnauthorized)
				io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
				return
			}
		}
		if isBlob && between != nil && between(w, r) {
			return
		}
		store.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	h.addr = strings.TrimPrefix(server.URL, "http://")
	return h
}

// push uploads an image and returns its name with the registry.
func (h *hub) push(img v1.Image, repository string) string {
	h.t.Helper()
	full := h.addr + "/" + repository
	ref, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(h.auth())); err != nil {
		h.t.Fatal(err)
	}
	return full
}

// pushIndex uploads an index and returns its name with the registry.
func (h *hub) pushIndex(index v1.ImageIndex, repository string) string {
	h.t.Helper()
	full := h.addr + "/" + repository
	ref, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithAuth(h.auth())); err != nil {
		h.t.Fatal(err)
	}
	return full
}

func (h *hub) auth() authn.Authenticator {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.user == "" {
		return authn.Anonymous
	}
	return &authn.Basic{Username: h.user, Password: h.password}
}

// require makes the registry ask for a password from now on.
func (h *hub) require(user, password string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.user, h.password = user, password
}

// spoil sets what happens to requests for blobs; nil is nothing.
func (h *hub) spoil(between func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.between = between
}

func (h *hub) fetched() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.blobs
}
