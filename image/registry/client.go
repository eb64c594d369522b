// Package registry speaks the read side of the OCI distribution protocol:
// manifests and blobs, with authentication, mirrors, retries and ranges. What
// it returns is not verified; its callers do that. It must not know of the
// local store.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"manis/image/fault"
	"manis/image/reference"
)

// Options of a Client. The zero value works for public registries.
type Options struct {
	// Keychain finds credentials; nil means docker's configuration with its
	// credential helpers.
	Keychain authn.Keychain
	// Insecure allows plain HTTP, and certificates that nobody vouches for, for
	// every registry. Loopback registries may speak plain HTTP anyway.
	Insecure bool
	// Hosts says how to reach registries, by host; see Host.
	Hosts Hosts
	// Transport replaces the default HTTP transport.
	Transport http.RoundTripper
	// Backoff is the pause before the first retry, doubled for each further
	// one; 0 means 500 ms.
	Backoff time.Duration
	// Retries after passing errors; 0 means 5. A retry that got more data
	// starts the count again.
	Retries int
	// IdleTimeout ends a transfer in which nothing arrives; 0 means 60 s.
	IdleTimeout time.Duration
	UserAgent   string
}

// Client reads from registries. It is safe for concurrent use.
type Client struct {
	opts Options
	base http.RoundTripper
}

// New makes a client.
func New(opts Options) *Client {
	if opts.Keychain == nil {
		opts.Keychain = authn.DefaultKeychain
	}
	if opts.Backoff == 0 {
		opts.Backoff = 500 * time.Millisecond
	}
	if opts.Retries == 0 {
		opts.Retries = 5
	}
	if opts.IdleTimeout == 0 {
		opts.IdleTimeout = 60 * time.Second
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "manis"
	}
	c := &Client{opts: opts, base: opts.Transport}
	if c.base == nil {
		c.base = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       30 * time.Second,
			TLSHandshakeTimeout:   15 * time.Second,
			ResponseHeaderTimeout: opts.IdleTimeout,
			// Blobs must arrive as they are, or their ranges and digests are off.
			DisableCompression: true,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: opts.Insecure, MinVersion: tls.VersionTLS12},
		}
	}
	return c
}

// Close gives up idle connections.
func (c *Client) Close() {
	if t, ok := c.base.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// Repository is one repository, reached through its mirrors and then its own
// registry.
type Repository struct {
	c         *Client
	name      reference.Name
	endpoints []*endpoint
}

// endpoint is a host that may serve the repository.
type endpoint struct {
	c    *Client
	repo name.Repository
	host string
	http bool // plain HTTP allowed

	mu     sync.Mutex
	client *http.Client
	base   string // scheme and host, once known
}

// Repository returns the repository of n. Nothing is asked of any host yet.
func (c *Client) Repository(n reference.Name) (*Repository, error) {
	r := &Repository{c: c, name: n}
	own := c.opts.Hosts[n.Domain]
	for _, m := range own.Mirrors {
		u, err := url.Parse(m)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("mirror %q of %s (want http://host:port or https://host:port): %w", m, n.Domain, fault.ErrInvalid)
		}
		e, err := c.endpoint(u.Host, n.Path, u.Scheme == "http")
		if err != nil {
			return nil, err
		}
		r.endpoints = append(r.endpoints, e)
	}
	host := n.Domain
	if host == "docker.io" {
		host = name.DefaultRegistry
	}
	e, err := c.endpoint(host, n.Path, c.opts.Insecure || own.Insecure || reference.IsLoopback(host))
	if err != nil {
		return nil, err
	}
	r.endpoints = append(r.endpoints, e)
	return r, nil
}

func (c *Client) endpoint(host, path string, plain bool) (*endpoint, error) {
	var opts []name.Option
	if plain {
		opts = append(opts, name.Insecure)
	}
	repo, err := name.NewRepository(host+"/"+path, opts...)
	if err != nil {
		return nil, fmt.Errorf("repository %s/%s: %v: %w", host, path, err, fault.ErrInvalid)
	}
	return &endpoint{c: c, repo: repo, host: host, http: plain}, nil
}

// connect finds out how the endpoint wants to be spoken to.
func (e *endpoint) connect(ctx context.Context) (*http.Client, string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		return e.client, e.base, nil
	}
	auth, err := authn.Resolve(ctx, e.c.opts.Keychain, e.repo)
	if err != nil {
		return nil, "", fmt.Errorf("credentials for %s (is the credential helper of docker's config.json installed?): %v: %w", e.host, err, fault.ErrUnauthorized)
	}
	guard := &plainGuard{inner: transport.NewUserAgent(e.c.base, e.c.opts.UserAgent), host: e.host, allowed: e.http}
	rt, err := transport.NewWithContext(ctx, e.repo.Registry, auth, guard, []string{e.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, "", explain(err, e.host)
	}
	scheme := "https"
	if guard.usedPlain() {
		scheme = "http"
	}
	e.client = &http.Client{Transport: rt, CheckRedirect: e.checkRedirect}
	e.base = scheme + "://" + e.repo.RegistryStr()
	return e.client, e.base, nil
}

// checkRedirect keeps a registry out in the world from pointing this host at
// its own services.
func (e *endpoint) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if reference.IsLoopback(e.host) {
		return nil
	}
	host := req.URL.Hostname()
	if ip := net.ParseIP(host); reference.IsLoopback(host) || ip != nil && (ip.IsLinkLocalUnicast() || ip.IsUnspecified()) {
		return fmt.Errorf("%s redirects to this host's own address %s: refused", e.host, host)
	}
	return nil
}

// plainGuard refuses plain HTTP to where it was not allowed, whatever the
// layers above decided.
type plainGuard struct {
	inner   http.RoundTripper
	host    string
	allowed bool

	mu    sync.Mutex
	plain bool
}

var errPlain = errors.New("plain HTTP refused (allowed for loopback registries, or when asked for)")

// RoundTrip implements http.RoundTripper.
func (g *plainGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !g.allowed && !reference.IsLoopback(req.URL.Host) {
		return nil, fmt.Errorf("%s: %w", req.URL.Host, errPlain)
	}
	res, err := g.inner.RoundTrip(req)
	if err == nil && req.URL.Scheme == "http" && req.URL.Path == "/v2/" {
		g.mu.Lock()
		g.plain = true
		g.mu.Unlock()
	}
	return res, err
}

func (g *plainGuard) usedPlain() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.plain
}
