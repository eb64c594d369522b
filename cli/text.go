package cli

import (
	"errors"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

// text is an error's message without the decoration of the wire.
func text(err error) string {
	var s interface{ GRPCStatus() *grpcstatus.Status }
	if errors.As(err, &s) {
		if st := s.GRPCStatus(); st.Code() != codes.OK {
			return st.Message()
		}
	}
	return err.Error()
}

// execCode is docker's exit code for a process that could not be started.
func execCode(err error, otherwise int) int {
	switch grpcstatus.Code(err) {
	case codes.NotFound:
		return exitNoFile
	case codes.PermissionDenied, codes.FailedPrecondition:
		return exitNotExec
	}
	return otherwise
}
