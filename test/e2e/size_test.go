package e2e

import (
	"strings"
	"testing"

	"github.com/docker/go-units"
)

// parseSize reads a size as lists show it: "12.3MB", also with a share behind it.
func parseSize(t testing.TB, s string) int64 {
	t.Helper()
	s, _, _ = strings.Cut(s, " ")
	n, err := units.FromHumanSize(s)
	if err != nil {
		t.Fatalf("size %q: %v", s, err)
	}
	return n
}
