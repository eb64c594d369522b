package agent

import "github.com/containerd/ttrpc"

// Guard decides what an agent serves. Agents without one serve all that the protocol has.
type Guard interface {
	// Register adds services of the guard's own to a session's server.
	Register(*ttrpc.Server)
	// Before is called with a request before it is served, and may complete it. Its error is the answer.
	Before(method string, request any) error
	// After is called with the answer of a request that was served.
	After(method string, request, reply any)
	// Failed is called with a request that Before has let pass and that could not be carried out.
	Failed(method string, request any, err error)
}

// Sealer is a guard that encrypts disks.
type Sealer interface {
	// Seal makes an empty ext4 on a disk, of which the host can neither read anything nor change anything unnoticed, for the
	// writable layer of a container. It returns the device and the options to mount it with; unseal, to be called once after it
	// is no longer mounted, or about to be, gives it back.
	Seal(container, disk string, bytes uint64) (path, options string, unseal func() error, err error)
}

// guarded has the guard asked between a request's being decoded and served.
func (s *service) guarded(method string, unmarshal func(any) error, passed *any) func(any) error {
	return func(to any) error {
		err := unmarshal(to)
		if err == nil {
			err = s.protector.Before(method, to)
		}
		if err == nil {
			*passed = to
		}
		return err
	}
}
