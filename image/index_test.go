package image

import (
	"errors"
	"strings"
	"testing"
)

func TestParsePlatform(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"linux/amd64", "linux/amd64"},
		{"linux/x86_64", "linux/amd64"},
		{"arm64", "linux/arm64"},
		{"linux/arm64/v8", "linux/arm64"},
		{"linux/armhf", "linux/arm/v7"},
		{"linux", HostPlatform().String()},
		{"windows/amd64", "windows/amd64"},
		{"toaster/x", `unknown operating system "toaster"`},
		{"linux/toaster", `unknown architecture "toaster"`},
		{"toaster", `unknown architecture "toaster"`},
		{"", "want os/architecture[/variant]"},
		{"linux/", "want os/architecture[/variant]"},
		{"linux/arm/v7/x", "want os/architecture[/variant]"},
	} {
		p, err := ParsePlatform(tt.in)
		switch {
		case err == nil && p.String() != tt.want:
			t.Errorf("%q: %s, want %s", tt.in, p, tt.want)
		case err != nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%q: %v, want %s", tt.in, err, tt.want)
		}
	}
}
