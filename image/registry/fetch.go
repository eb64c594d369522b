package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"manis/image/fault"
)

// accept lists the manifests that are asked for, best first.
const accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1"

// Manifest returns the manifest or index that the repository knows by a tag
// or digest, at most limit bytes of it, and its media type.
func (r *Repository) Manifest(ctx context.Context, identifier string, limit int64) (raw []byte, mediaType string, err error) {
	err = r.each(ctx, nil, func(e *endpoint) error {
		body, res, err := e.get(ctx, "manifests/"+identifier, accept, 0, 0)
		if err != nil {
			return err
		}
		defer body.Close()
		raw, err = io.ReadAll(io.LimitReader(body, limit+1))
		if err != nil {
			return err
		}
		if int64(len(raw)) > limit {
			return fmt.Errorf("manifest is larger than %d bytes: %w", limit, fault.ErrLimit)
		}
		if res.ContentLength >= 0 && int64(len(raw)) < res.ContentLength {
			return fmt.Errorf("manifest ends after %d of %d bytes: %w", len(raw), res.ContentLength, fault.ErrTruncated)
		}
		mediaType, _, _ = strings.Cut(res.Header.Get("Content-Type"), ";")
		return nil
	})
	return raw, mediaType, err
}

// Sink takes a blob piece by piece.
type Sink interface {
	// Offset is where the next byte belongs.
	Offset() int64
	// Restart goes back to offset 0.
	Restart() error
	io.Writer
}

// Fetch gets a blob of size bytes from where the sink stands to its end. What
// arrived before an error stays in the sink, and passing errors are retried
// from there; retrying is told of them.
func (r *Repository) Fetch(ctx context.Context, d v1.Hash, size int64, to Sink, retrying func(error)) error {
	at := func() int64 { return to.Offset() }
	if retrying == nil {
		retrying = func(error) {}
	}
	return r.each(ctx, &attempt{at: at, retrying: retrying}, func(e *endpoint) error {
		if to.Offset() >= size {
			return nil
		}
		body, res, err := e.get(ctx, "blobs/"+d.String(), "", to.Offset(), size)
		var s *statusError
		if errors.As(err, &s) && s.code == http.StatusRequestedRangeNotSatisfiable {
			// The registry's blob is shorter than what we have of it.
			if err := to.Restart(); err != nil {
				return err
			}
			body, res, err = e.get(ctx, "blobs/"+d.String(), "", 0, size)
		}
		if err != nil {
			return err
		}
		defer body.Close()
		if res.StatusCode != http.StatusPartialContent && to.Offset() > 0 {
			// The server does not do ranges and sends it all.
			if err := to.Restart(); err != nil {
				return err
			}
		}
		sink := &sinkWriter{to: to}
		if _, err := io.CopyBuffer(sink, io.LimitReader(body, size-to.Offset()+1), make([]byte, 256<<10)); err != nil {
			if sink.err != nil {
				return &localError{sink.err}
			}
			return fmt.Errorf("after %d of %d bytes: %w", to.Offset(), size, err)
		}
		if to.Offset() < size {
			return fmt.Errorf("after %d of %d bytes: %w", to.Offset(), size, errShort)
		}
		return nil
	})
}

// errShort is a body that ended early without the connection breaking.
var errShort = fmt.Errorf("the registry sent no more: %w", fault.ErrTruncated)

// sinkWriter remembers whether it was the sink that failed.
type sinkWriter struct {
	to  Sink
	err error
}

func (s *sinkWriter) Write(p []byte) (int, error) {
	n, err := s.to.Write(p)
	s.err = err
	return n, err
}

// localError is not the registry's fault: no other attempt helps.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

type attempt struct {
	at       func() int64
	retrying func(error)
}

// each tries fn on the endpoints in order: the next one after any failure of
// a mirror, the same one again after a passing error of the last.
func (r *Repository) each(ctx context.Context, a *attempt, fn func(*endpoint) error) error {
	var first error
	for i, e := range r.endpoints {
		last := i == len(r.endpoints)-1
		err := r.retry(ctx, a, e, last, fn)
		if err == nil {
			return nil
		}
		var local *localError
		if errors.As(err, &local) {
			return local.error
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", e.host, context.Cause(ctx))
		}
		err = fmt.Errorf("%s: %w", e.host, err)
		if first == nil || !errors.Is(err, fault.ErrNotFound) || errors.Is(first, fault.ErrNotFound) {
			first = join(first, err)
		}
	}
	return first
}

func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

func (r *Repository) retry(ctx context.Context, a *attempt, e *endpoint, last bool, fn func(*endpoint) error) error {
	retries := r.c.opts.Retries
	if !last {
		retries = 1 // there is another place to ask
	}
	wait := r.c.opts.Backoff
	for n := 0; ; n++ {
		var before int64
		if a != nil {
			before = a.at()
		}
		err := fn(e)
		if err == nil || ctx.Err() != nil {
			return err
		}
		delay, passing := transient(err)
		if !passing {
			return err
		}
		if a != nil && a.at() > before {
			n, wait = 0, r.c.opts.Backoff
		}
		if n >= retries {
			return fmt.Errorf("gave up after %d attempts: %w", n+1, err)
		}
		if a != nil {
			a.retrying(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(wait, delay)):
		}
		wait = min(wait*2, 30*time.Second)
	}
}

// get asks for something below the repository, from byte offset on if that is
// not 0. The body fails when nothing arrives for too long.
func (e *endpoint) get(ctx context.Context, what, accept string, offset, size int64) (io.ReadCloser, *http.Response, error) {
	client, base, err := e.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/"+e.repo.RepositoryStr()+"/"+what, nil)
	if err != nil {
		cancel(nil)
		return nil, nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if offset > 0 {
		// With an end, for there are registries that insist on one.
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, size-1))
	}
	body := &idleBody{cancel: cancel, limit: e.c.opts.IdleTimeout}
	body.arm()
	res, err := client.Do(req)
	if err != nil {
		err = body.cause(ctx, err)
		body.stop()
		return nil, nil, explain(err, e.host)
	}
	body.inner = res.Body
	body.ctx = ctx
	switch {
	case res.StatusCode == http.StatusOK:
	case res.StatusCode == http.StatusPartialContent && offset > 0 && startsAt(res, offset):
	case res.StatusCode == http.StatusPartialContent:
		err = fmt.Errorf("the registry answered with another range (%s) than asked for: %w", res.Header.Get("Content-Range"), fault.ErrInvalid)
	default:
		err = explain(transport.CheckError(res, http.StatusOK), e.host)
	}
	if err != nil {
		body.Close()
		return nil, nil, err
	}
	return body, res, nil
}

func startsAt(res *http.Response, offset int64) bool {
	return strings.HasPrefix(res.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(offset, 10)+"-")
}

// idleBody is a response body that gives up when nothing arrives.
type idleBody struct {
	inner  io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

var errIdle = errors.New("nothing arrived for too long")

func (b *idleBody) arm() {
	b.timer = time.AfterFunc(b.limit, func() { b.cancel(errIdle) })
}

// cause returns errIdle when that is why a read failed.
func (b *idleBody) cause(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errIdle) {
		return errIdle
	}
	return err
}

func (b *idleBody) Read(p []byte) (int, error) {
	// What the transport has buffered would still come: do not take it.
	if err := b.ctx.Err(); err != nil {
		return 0, b.cause(b.ctx, err)
	}
	n, err := b.inner.Read(p)
	if n > 0 {
		b.timer.Reset(b.limit)
	}
	if err != nil && err != io.EOF {
		err = b.cause(b.ctx, err)
	}
	return n, err
}

func (b *idleBody) stop() {
	b.timer.Stop()
	b.cancel(nil)
}

func (b *idleBody) Close() error {
	b.stop()
	return b.inner.Close()
}
