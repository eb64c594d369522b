package pod

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// exitCode is the exit code of a process that could not be executed, as shells have it.
func exitCode(err error) int {
	switch status.Code(err) {
	case codes.NotFound:
		return 127
	case codes.PermissionDenied, codes.FailedPrecondition:
		return 126
	}
	return 1
}

// Text is an error in words for people: the wire's decoration goes.
func Text(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Message()
	}
	return fmt.Sprint(err)
}
