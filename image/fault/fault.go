// Package fault names the kinds of failure that the image rooms report, so
// that a front end can choose an exit code or an HTTP status without parsing
// text. Every error is wrapped with what was being done and to what; test for
// the kind with errors.Is. It must not know how any of them comes about.
package fault

import (
	"errors"
	"fmt"
	"syscall"
)

var (
	// ErrNotFound: the name, digest, ID or registry content does not exist.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous: a short ID fits more than one image.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrInvalid: the input is malformed or breaks its own format.
	ErrInvalid = errors.New("invalid")
	// ErrUnauthorized: the registry wants other credentials, or none suffice.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrPlatform: the image exists, but not for the platform wanted.
	ErrPlatform = errors.New("no image for this platform")
	// ErrInUse: a container or a running VM still needs it.
	ErrInUse = errors.New("in use")
	// ErrDigest: content differs from the digest or size promised for it.
	ErrDigest = errors.New("content does not match its digest")
	// ErrTruncated: content ended before its announced end.
	ErrTruncated = errors.New("content is truncated")
	// ErrUnsupported: a media type, compression or file kind that Manis does not read.
	ErrUnsupported = errors.New("not supported")
	// ErrLimit: content goes past a limit that protects this host.
	ErrLimit = errors.New("over the limit")
	// ErrNoSpace: the disk is full, or would be.
	ErrNoSpace = errors.New("no space left on the disk")
	// ErrUnavailable: a registry could not be reached or kept failing.
	ErrUnavailable = errors.New("registry unavailable")
)

// Disk marks err as ErrNoSpace when it is how a full disk or an exhausted
// quota shows itself.
func Disk(err error) error {
	if err != nil && !errors.Is(err, ErrNoSpace) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
