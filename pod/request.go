package pod

import (
	"encoding/json"
	"errors"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
	"manis/bundle"
)

// request is what a front end asks of a pod.
type request struct {
	Verb string          `json:"verb"`
	Body json.RawMessage `json:"body,omitempty"`
}

// reply answers it.
type reply struct {
	Error string `json:"error,omitempty"`
	Kind  kind   `json:"kind,omitempty"`
	// Code is the exit code of a process that could not be executed.
	Code int             `json:"code,omitempty"`
	Body json.RawMessage `json:"body,omitempty"`
}

// kind keeps an error's meaning across the socket.
type kind string

const (
	kindNotFound kind = "not found"
	kindState    kind = "state"
	kindOther    kind = "other"
)

// Errors that a front end tells apart.
var (
	// ErrNotFound: the pod has no such container or process.
	ErrNotFound = errors.New("container does not exist")
	// ErrState: the container is in a state that does not allow what was asked for.
	ErrState = errors.New("invalid container state")
	// ErrGone: the pod has ended, and all of its containers with it.
	ErrGone = errors.New("the pod has ended")
)

// CreateRequest makes a container. By a Client there come with it the proxy's socket and the streams: stdin,
// stdout and stderr, or the slave of a terminal.
type CreateRequest struct {
	ID string
	// Bundle is the bundle's directory, absolute, and Config what its config.json held.
	Bundle string
	Config []byte
	// Netns is a path of the network namespace whose interfaces the machine takes over. It
	// counts for a pod's first container.
	Netns string
	// UserNetwork gives the machine the user-mode network, in place of a namespace's.
	UserNetwork bool
	// Egress are lists of rules for what the user-mode network connects to, each of which has to allow it.
	Egress [][]string
	// Allowed is what the operator's policy has allowed of the host's files, which the caller has open; nil: there is no policy.
	Allowed *bundle.Allowed
	// Group is the control group on the host, made with all that count, in which the container's proxy is; empty: none. An end
	// for want of memory is counted there, too.
	Group string
	// Disks: it may have block devices of the host.
	Disks bool
	// Maps: it may have mounts with mapped ids, and the user namespace of its pod.
	Maps bool
	// Projections: volumes that the kubelet keeps up to date are copied into the machine, where programs hear of changes.
	Projections bool
	// JoinPID, JoinIPC and JoinUTS are containers of the pod whose namespaces this one has.
	JoinPID, JoinIPC, JoinUTS string
	// SharePID, ShareIPC and ShareUTS give it the machine's own instead, in which a pod's containers
	// meet without any of them being the first.
	SharePID, ShareIPC, ShareUTS bool
	// Accel and Boot are as in container.Config.
	Accel, Boot string
	// Layers are what the root filesystem consists of, in place of the bundle's root; nil: it is that, live.
	Layers *Layers
	// Image is the directory of a checkpoint's image that the container goes on from, absolute; it runs
	// then already. Empty: there is none.
	Image string
	// Rows and Columns are the terminal's size, 0 if unknown.
	Rows, Columns uint32
}

// ExecRequest runs a further process in a container. By a Client there come with it descriptors as
// for CreateRequest.
type ExecRequest struct {
	ID, ExecID string
	Process    *specs.Process
	// User is one of the container's by name or number, with a group or without; empty: the process's by number.
	User string
	// IgnorePaused runs it in a paused container, too: it waits there.
	IgnorePaused bool
	// ProxyPID is the process that stands for it on the host; 0: none.
	ProxyPID      int
	Rows, Columns uint32
}

// SignalRequest sends a signal to a container's first process, to another one, or to all.
type SignalRequest struct {
	ID, ExecID string
	Signal     uint32
	All        bool
}

// UpdateRequest changes a container's limits. What it does not name stays.
type UpdateRequest struct {
	ID        string
	Resources *specs.LinuxResources
}

// ref names a container.
type ref struct{ ID string }

// Status is what a pod says of a container.
type Status struct {
	// Status is created, running, paused or stopped, as the OCI runtime specification has it.
	Status specs.ContainerState
	// ExecPIDs are the processes on the host that stand for further ones in the container.
	ExecPIDs []int
}

// Usage are a container's counters.
type Usage struct {
	Stats *agent.StatsResponse
}
