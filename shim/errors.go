package shim

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"manis/pod"
	"manis/policy"
	"manis/sandbox"
)

// refuse gives an error the kind by which containerd knows it.
func refuse(err error) error {
	var kind error = errdefs.ErrUnknown
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pod.ErrNotFound), errors.Is(err, errdefs.ErrNotFound):
		kind = errdefs.ErrNotFound
	case errors.Is(err, pod.ErrState), errors.Is(err, errdefs.ErrFailedPrecondition), errors.Is(err, sandbox.ErrEnded):
		kind = errdefs.ErrFailedPrecondition
	case errors.Is(err, policy.ErrRefused):
		kind = errdefs.ErrPermissionDenied
	case errors.Is(err, errdefs.ErrAlreadyExists):
		kind = errdefs.ErrAlreadyExists
	case errors.Is(err, errdefs.ErrInvalidArgument):
		kind = errdefs.ErrInvalidArgument
	case errors.Is(err, errdefs.ErrNotImplemented):
		kind = errdefs.ErrNotImplemented
	case errors.Is(err, context.DeadlineExceeded):
		kind = context.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		kind = context.Canceled
	}
	return errgrpc.ToGRPCf(kind, "%s", pod.Text(err))
}
