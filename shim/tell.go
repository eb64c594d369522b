package shim

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"manis/place"
	"manis/pool"
)

// tellStart tells manisd, if it runs, what has become of the start of a pod or a container: for its metrics.
func tellStart(what string, begin time.Time, err error) {
	places, missing := place.Find("", "")
	if missing != nil {
		return
	}
	if _, err := os.Stat(places.Pool()); err != nil {
		return // most hosts have none
	}
	pool.Tell(places.Pool(), pool.Start{What: what, Result: resultOf(err), Seconds: time.Since(begin).Seconds()})
}

// resultOf sorts what can go wrong.
func resultOf(err error) string {
	switch {
	case err == nil:
		return pool.Started
	case errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err):
		return pool.Late
	case errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsAlreadyExists(err):
		return pool.Refused
	}
	return pool.Failed
}
