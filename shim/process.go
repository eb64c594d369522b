package shim

import (
	"fmt"
	"os"
	"sync"
	"time"

	event "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"manis/pod"
)

// process is the first process of a container or a further one, as containerd knows it.
type process struct {
	task   *container
	execID string         // empty: the first
	spec   *specs.Process // of a further one
	io     stdio
	events *events
	pid    uint32
	done   chan struct{} // closed when it has ended

	mu     sync.Mutex
	status task.Status
	keeper *os.File // keeps standard input open
	closed bool     // its input was, perhaps before there was a keeper
	told   bool     // containerd knows that it was started
	exit   *pod.Exit
	// rows and columns were set before it was started.
	rows, columns uint32
}

func (p *process) state() (task.Status, *pod.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status, p.exit
}

func (p *process) set(s task.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit == nil {
		p.status = s
	}
}

// started is called when the process runs: only then its end is told, which may have come before.
func (p *process) started(announcement any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events.send(announcement)
	p.told = true
	if p.exit == nil {
		p.status = task.Status_RUNNING
		return
	}
	p.tell()
}

// end makes it an ended one, once.
func (p *process) end(e pod.Exit) {
	if p.execID == "" {
		// The last that is heard of a container is the end of its first process.
		p.task.awaitExecs(patience + time.Second)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(e)
}

// finish is end with p.mu held.
func (p *process) finish(e pod.Exit) {
	if p.exit != nil {
		return
	}
	p.exit, p.status = &e, task.Status_STOPPED
	p.closeInput()
	if e.Reason != "" {
		fmt.Fprintf(os.Stderr, "container %s: %s\n", p.task.id, e.Reason)
	}
	if p.told {
		p.tell()
	}
	close(p.done)
}

// tell tells the end; p.mu is held.
func (p *process) tell() {
	id := p.execID
	if id == "" {
		id = p.task.id
		if p.exit.OOM {
			p.events.send(&event.TaskOOM{ContainerID: p.task.id})
		}
	}
	p.events.send(&event.TaskExit{ContainerID: p.task.id, ID: id, Pid: p.pid, ExitStatus: uint32(p.exit.Code), ExitedAt: timestamppb.New(p.exit.At)})
}

// closeInput lets the process see the end of its input once the clients have gone; p.mu is held.
func (p *process) closeInput() {
	p.closed = true
	if p.keeper != nil {
		p.keeper.Close()
		p.keeper = nil
	}
}

// keep takes over what keeps standard input open, until closeInput: which may have been called already, as a client
// whose input has ended says so before the process runs.
func (p *process) keep(keeper *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keeper = keeper
	if p.closed {
		p.closeInput()
	}
}

// exitStatus is what containerd is told of an end: zero before.
func (p *process) exitStatus() (code uint32, at *timestamppb.Timestamp) {
	_, exit := p.state()
	if exit == nil {
		return 0, nil
	}
	return uint32(exit.Code), timestamppb.New(exit.At)
}
