package agent

import (
	"syscall"
	"testing"
)

func TestDroppedSignals(t *testing.T) {
	const masks = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000004000\n"
	for _, test := range []struct {
		name, status string
		sig          syscall.Signal
		want         bool
	}{
		{"first, no handler", "NSpid:\t12\t1\n" + masks, syscall.SIGUSR1, true},
		{"first, handler", "NSpid:\t12\t1\n" + masks, syscall.SIGTERM, false},
		{"first, blocked", "NSpid:\t12\t1\n" + masks, syscall.SIGHUP, false},
		{"first, ignored", "NSpid:\t12\t1\n" + masks, syscall.SIGINT, false},
		{"not the first", "NSpid:\t12\t7\n" + masks, syscall.SIGUSR1, false},
		{"no namespace of its own", "NSpid:\t1\n" + masks, syscall.SIGUSR1, false},
		{"highest", "NSpid:\t12\t1\nSigCgt:\t8000000000000000\n", 64, false},
		{"damaged", "NSpid:\t12\t1\nSigCgt:\tx\n", syscall.SIGUSR1, false},
		{"empty", "", syscall.SIGUSR1, false},
	} {
		if got := dropped(test.status, test.sig); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
