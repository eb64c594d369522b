package wire

import (
	"context"
	"errors"
	"strings"
	"unicode"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
)

// MaxText is the most bytes of an error's text.
const MaxText = 8 << 10

// legible makes the texts of errors fit to be kept and shown: they come from the other side, which is not
// to speak to anybody's terminal or fill anybody's disk.
func legible(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, req, resp)
	if resp.Status != nil {
		resp.Status.Message = Legible(resp.Status.Message)
		resp.Status.Details = nil // nobody reads them
	}
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		if text := s.GRPCStatus().Message(); Legible(text) != text {
			return status.Error(s.GRPCStatus().Code(), Legible(text))
		}
	}
	return err
}

// Legible returns the beginning of s, at most MaxText bytes, without what a terminal could take for a command.
// Lines and tabs stay.
func Legible(s string) string {
	if len(s) > MaxText {
		s = strings.ToValidUTF8(s[:MaxText-4], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return '?'
	}, s)
}
