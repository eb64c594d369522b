package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"manis/image/fault"
)

// statusError is what a registry answered instead of what was asked for.
type statusError struct {
	kind error
	code int
	text string
}

func (e *statusError) Error() string { return e.text }
func (e *statusError) Unwrap() error { return e.kind }

// explain turns an error of the transport into one of a kind, in words.
func explain(err error, host string) error {
	var t *transport.Error
	var dns *net.DNSError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &t):
		return explainStatus(t)
	case strings.Contains(err.Error(), errPlain.Error()):
		return fmt.Errorf("%w: %w", errPlain, fault.ErrUnavailable)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("no such host (is the registry's name right?): %w", fault.ErrUnavailable)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connection refused (does a registry run there?): %w: %w", syscall.ECONNREFUSED, fault.ErrUnavailable)
	}
	return fmt.Errorf("%w: %w", err, fault.ErrUnavailable)
}

func explainStatus(t *transport.Error) error {
	e := &statusError{code: t.StatusCode}
	code, said := "", ""
	if len(t.Errors) > 0 {
		code, said = string(t.Errors[0].Code), t.Errors[0].Message
	}
	switch {
	case t.StatusCode == http.StatusUnauthorized, code == "UNAUTHORIZED", code == "DENIED", t.StatusCode == http.StatusForbidden:
		e.kind = fault.ErrUnauthorized
		e.text = "access denied (is the name right, and does docker's config.json hold a login for the registry?)"
	case code == "MANIFEST_UNKNOWN":
		e.kind, e.text = fault.ErrNotFound, "manifest unknown (is the tag right?)"
	case code == "NAME_UNKNOWN":
		e.kind, e.text = fault.ErrNotFound, "repository unknown (is the name right?)"
	case code == "BLOB_UNKNOWN":
		e.kind, e.text = fault.ErrNotFound, "blob unknown: the registry has lost a part of the image"
	case t.StatusCode == http.StatusNotFound:
		e.kind, e.text = fault.ErrNotFound, "not found (are name and tag right?)"
	case t.StatusCode == http.StatusTooManyRequests:
		e.kind, e.text = fault.ErrUnavailable, "too many requests"
	default:
		e.kind, e.text = fault.ErrUnavailable, fmt.Sprintf("answered %d %s", t.StatusCode, http.StatusText(t.StatusCode))
	}
	if said != "" && !strings.Contains(e.text, said) {
		e.text += fmt.Sprintf(": %.200q", said)
	}
	return e
}

// transient reports whether the same request may succeed soon, and how long
// to wait at the least.
func transient(err error) (wait time.Duration, ok bool) {
	var s *statusError
	var n net.Error
	var local *localError
	switch {
	case errors.As(err, &local):
		return 0, false
	case errors.As(err, &s):
		switch s.code {
		case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return 0, true
		case http.StatusTooManyRequests:
			return 2 * time.Second, true
		}
		return 0, false
	case errors.Is(err, errPlain), errors.Is(err, syscall.ECONNREFUSED):
		return 0, false
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, errIdle), errors.Is(err, errShort),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return 0, true
	case errors.As(err, &n):
		return 0, n.Timeout()
	}
	return 0, strings.Contains(err.Error(), "http2: ") || strings.Contains(err.Error(), "stream error")
}
