package container

import "time"

// Status is the word that `ps` shows.
type Status string

const (
	Created    Status = "created"
	Running    Status = "running"
	Paused     Status = "paused"
	Restarting Status = "restarting"
	Exited     Status = "exited"
	// Dead: its monitor ended without saying how the container did.
	Dead Status = "dead"
)

// State is what became of a container.
type State struct {
	Status Status
	// MonitorPID and VMPID are process ids on the host, 0 when not running.
	MonitorPID int
	VMPID      int
	ExitCode   int
	OOMKilled  bool
	// Error says why the container did not start or how its VM ended when it
	// was not by its own exit.
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
	// RestartCount counts restarts by policy since the last start by a user.
	RestartCount int
	// StoppedByUser keeps unless-stopped from starting it again.
	StoppedByUser bool
	Health        *HealthState `json:",omitempty"`
	// Ports are the published ports with the host ports chosen.
	Ports []Port `json:",omitempty"`
	// IPAddress is the VM's address in its own user-mode network.
	IPAddress string `json:",omitempty"`
	Gateway   string `json:",omitempty"`
	MAC       string `json:",omitempty"`
	// VM describes the machine: accelerator, QEMU, the jail in force. It is
	// the JSON of vmm.Info, kept as it was at the last start.
	VM []byte `json:",omitempty"`
	// Continued: the container has gone on from its snapshot; from then on it starts as others do.
	Continued bool `json:",omitempty"`
	// Boot is the template that the machine came from, or "cold" and why.
	Boot string `json:",omitempty"`
}

// HealthState is docker's: starting, healthy, unhealthy.
type HealthState struct {
	Status        string
	FailingStreak int
	Log           []HealthResult `json:",omitempty"` // the last five
}

// HealthResult is one run of the check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int
	Output     string // at most 4096 bytes
}
