package qemu

import (
	_ "embed"
	"sync"

	"manis/vmm/jail"
)

//go:embed calls.txt
var callsText string

//go:embed tpm-calls.txt
var tpmCallsText string

// calls are the system calls that QEMU may make, tpmCalls those of the TPM.
var (
	calls    = sync.OnceValues(func() (*jail.Calls, error) { return jail.ParseCalls(callsText) })
	tpmCalls = sync.OnceValues(func() (*jail.Calls, error) { return jail.ParseCalls(tpmCallsText) })
)
