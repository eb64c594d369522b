package spec

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Real-time signals as the C libraries number them.
const (
	rtMin = 34
	rtMax = 64
)

// aliases are second names of signals.
var aliases = map[string]unix.Signal{"CLD": unix.SIGCHLD, "IOT": unix.SIGABRT, "POLL": unix.SIGIO}

// Signal reads a signal by name, with or without SIG in any case ("TERM",
// "sigterm", "RTMIN+3"), or by number. Empty means SIGTERM.
func Signal(s string) (unix.Signal, error) {
	bad := fmt.Errorf("invalid signal: %s", s)
	if s == "" {
		return unix.SIGTERM, nil
	}
	if s[0] >= '0' && s[0] <= '9' {
		n, err := strconv.ParseUint(s, 10, 8)
		if err != nil || n < 1 || n > rtMax {
			return 0, bad
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if offset, ok := strings.CutPrefix(name, "RTMIN"); ok {
		return realTime(offset, "+", rtMin, 1, bad)
	}
	if offset, ok := strings.CutPrefix(name, "RTMAX"); ok {
		return realTime(offset, "-", rtMax, -1, bad)
	}
	if sig, ok := aliases[name]; ok {
		return sig, nil
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	return 0, bad
}

func realTime(offset, sign string, base, direction int, bad error) (unix.Signal, error) {
	if offset == "" {
		return unix.Signal(base), nil
	}
	digits, ok := strings.CutPrefix(offset, sign)
	n, err := strconv.ParseUint(digits, 10, 8)
	if !ok || err != nil || n > rtMax-rtMin {
		return 0, bad
	}
	return unix.Signal(base + direction*int(n)), nil
}
