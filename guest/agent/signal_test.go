package agent

import (
	"syscall"
	"testing"
)

func TestSignalStatus(t *testing.T) {
	const masks = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000004000\n"
	for _, test := range []struct {
		name, status string
		sig          syscall.Signal
		want         signalStatus
	}{
		{"first, no handler", "State:\tS (sleeping)\nNSpid:\t12\t1\n" + masks, syscall.SIGUSR1, signalStatus{first: true}},
		{"first, handler, runs", "State:\tR (running)\nNSpid:\t12\t1\n" + masks, syscall.SIGTERM, signalStatus{true, true, true}},
		{"first, blocked, reads", "State:\tD (disk sleep)\nNSpid:\t12\t1\n" + masks, syscall.SIGHUP, signalStatus{true, true, true}},
		{"first, ignored", "NSpid:\t12\t1\n" + masks, syscall.SIGINT, signalStatus{first: true, set: true}},
		{"not the first", "NSpid:\t12\t7\n" + masks, syscall.SIGUSR1, signalStatus{}},
		{"no namespace of its own", "NSpid:\t1\n" + masks, syscall.SIGUSR1, signalStatus{}},
		{"highest", "NSpid:\t12\t1\nSigCgt:\t8000000000000000\n", 64, signalStatus{first: true, set: true}},
		{"damaged", "NSpid:\t12\t1\nSigCgt:\tx\n", syscall.SIGUSR1, signalStatus{first: true, set: true}},
		{"empty", "", syscall.SIGUSR1, signalStatus{}},
	} {
		if got := parseSignalStatus(test.status, test.sig); got != test.want {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}
