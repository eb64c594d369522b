package vmm

// Reason is why a VM ended.
type Reason string

const (
	// PowerOff: the guest switched itself off.
	PowerOff Reason = "poweroff"
	// Reset: the guest rebooted, which ends a VM of ours.
	Reset Reason = "reset"
	// Panic: the guest's kernel gave up; the console says why.
	Panic Reason = "panic"
	// Killed: by Kill, or by a signal from outside.
	Killed Reason = "killed"
	// Failed: the monitor itself gave up.
	Failed Reason = "failed"
)

// Exit is how a VM ended.
type Exit struct {
	Reason Reason
	// Detail is one line for people; it may quote the monitor's messages.
	Detail string
}

// Info describes a running VM.
type Info struct {
	// Driver is the name of the monitor, Version its own.
	Driver  string `json:"driver"`
	Version string `json:"version"`
	PID     int    `json:"pid"`
	Accel   Accel  `json:"accel"`
	// Args is the monitor's command line.
	Args []string `json:"args"`
	// MemoryBytes is the guest's RAM, VCPUs the number of its processors, with what it has grown by.
	MemoryBytes uint64 `json:"memory_bytes"`
	VCPUs       int    `json:"vcpus"`
	// Jail lists what confines the monitor, each verified from outside.
	Jail []Confinement `json:"jail"`
	// Start is how long each phase of the start took, in order.
	Start []Phase `json:"start"`
}

// Memory is what a VM takes of the host's memory, in bytes. Pages that several
// processes share, like those of the monitor's program, count in equal parts (PSS).
type Memory struct {
	// Guest is the part of the guest's RAM that it has touched.
	Guest uint64 `json:"guest"`
	// Private is the monitor's own memory: what one more VM costs.
	Private uint64 `json:"private"`
	// Cached are the monitor's clean pages of files, its program, libraries and
	// the guest's kernel among them, which the host drops when it needs memory.
	Cached uint64 `json:"cached"`
}

// Confinement is one fact about the monitor's jail.
type Confinement struct {
	Name string `json:"name"`
	// InForce is false for what the host did not permit; Detail says why.
	InForce bool   `json:"in_force"`
	Detail  string `json:"detail"`
}

// Phase is a part of a VM's start.
type Phase struct {
	Name string `json:"name"`
	// Nanoseconds since the beginning of Start at which the phase ended.
	Nanoseconds int64 `json:"ns"`
}
