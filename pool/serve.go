package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// maxConns bounds the connections to one socket at a time, the others wait.
const maxConns = 64

// Serve answers on a listener until ctx ends: to this user and root on a unix socket, about state and
// metrics, and takes notice of misses; to everybody who reaches a TCP port, about metrics.
//
//	GET /metrics   Prometheus' text format
//	GET /pool      State as JSON
//	POST /missed   see Miss
//	POST /started  see Tell
func (p *Pool) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		s, err := p.State(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		WriteMetrics(w, s)
	})
	if _, local := l.(*net.UnixListener); local {
		l = &ownListener{l.(*net.UnixListener)}
		mux.HandleFunc("GET /pool", func(w http.ResponseWriter, r *http.Request) {
			s, err := p.State(r.Context())
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(s)
		})
		hear := func(resource string, take func(message []byte) error) {
			mux.HandleFunc("POST "+resource, func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMiss))
				if err == nil {
					err = take(b)
				}
				if err != nil {
					http.Error(w, err.Error(), http.StatusBadRequest)
					return
				}
				w.WriteHeader(http.StatusNoContent)
			})
		}
		// In the pool's time, not in that of the request: who told may have hung up.
		hear("/missed", func(b []byte) error {
			cfg, err := parseMiss(b)
			if err != nil {
				return err
			}
			return p.Missed(ctx, cfg)
		})
		hear("/started", func(b []byte) error {
			s, err := parseStart(b)
			if err != nil {
				return err
			}
			return p.tell(ctx, func(k *keeping) { k.started(s) })
		})
	}
	server := &http.Server{
		Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 5 * time.Second,
		MaxHeaderBytes: 8 << 10,
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	err := server.Serve(netutil.LimitListener(l, maxConns))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ownListener accepts this user and root only, whatever the modes of the socket and its
// directory say.
type ownListener struct{ *net.UnixListener }

func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := Peer(conn); err == nil && (uid == os.Geteuid() || uid == 0) {
			return conn, nil
		}
		conn.Close()
	}
}

// Peer is the user at the other end.
func Peer(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return 0, errors.Join(cerr, err)
	}
	return int(cred.Uid), nil
}

// Listen makes the socket at path; one that a killed process has left is replaced. It goes when
// the listener is closed.
func Listen(path string) (net.Listener, error) {
	var l net.Listener
	err := alone(path, func() (err error) {
		if listens(path) {
			return fmt.Errorf("%s is served already: another manisd keeps this pool, or systemd would start one", path)
		}
		os.Remove(path)
		l, err = net.Listen("unix", path)
		if err == nil {
			err = os.Chmod(path, 0o600)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve front ends: %w", err)
	}
	return l, nil
}

// ErrNone: nobody keeps a pool.
var ErrNone = errors.New("no manisd keeps a pool here")

// Ask returns the state of the pool that is kept by the process at the socket path, or ErrNone.
func Ask(ctx context.Context, path string) (State, error) {
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://manisd/pool", nil)
	if err != nil {
		return State{}, err
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED):
		return State{}, ErrNone
	case err != nil:
		return State{}, fmt.Errorf("ask manisd: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return State{}, fmt.Errorf("ask manisd: %s", response.Status)
	}
	var s State
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&s); err != nil {
		return State{}, fmt.Errorf("ask manisd: %w", err)
	}
	return s, nil
}
