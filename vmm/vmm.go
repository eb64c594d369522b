// Package vmm is what a sandbox needs of a virtual machine monitor: a small
// interface and its value types. It must not know any particular monitor, nor
// what runs in the guest beyond "something that speaks through one byte stream".
//
// # Life cycle
//
// A Driver starts a VM from a Config. Start returns when the monitor has accepted
// every device, is verified to be jailed, and the guest's processor runs; it does
// not wait for the guest. From then on the VM
//
//   - runs, until it powers off, resets, panics, fails, or is killed; all of these end
//     it for good: no VM restarts by itself. Done is closed then and Exit says why;
//   - may be paused, during which the guest executes nothing and the stream
//     accepts what fits its buffers;
//   - is released by Kill, which also waits for the end. Every VM is killed by its
//     owner in the end, also one that is Done: Kill frees descriptors and
//     directories. It may be called any number of times, from anywhere.
//
// The stream returned by Agent is open from the start: what the host writes before
// the guest listens is kept and arrives. It ends (EOF) when the VM ends.
//
// When the process that started a VM dies, in whatever way, the VM dies with it.
package vmm

import (
	"context"
	"errors"
	"net"
	"os"
)

// Errors that a caller may want to tell apart; drivers wrap them.
var (
	// ErrNoMonitor: the VMM program is not installed or cannot be executed.
	ErrNoMonitor = errors.New("virtual machine monitor not usable")
	// ErrNotJailed: the host does not permit the confinement asked for, so nothing was started.
	ErrNotJailed = errors.New("virtual machine monitor cannot be jailed")
	// ErrRejected: the monitor ended before the guest ran, usually because of its configuration.
	ErrRejected = errors.New("virtual machine not started")
	// ErrEnded: the VM has ended.
	ErrEnded = errors.New("virtual machine has ended")
	// ErrConfig: a Config that no VM can have.
	ErrConfig = errors.New("invalid virtual machine configuration")
)

// Driver starts VMs. It is safe for concurrent use.
type Driver interface {
	// Start starts a VM. ctx bounds the start only. The driver duplicates what it
	// needs of the descriptors in c, so the caller closes its own after Start
	// returned, with or without error. Errors wrap one of the sentinels above or ctx.Err().
	Start(ctx context.Context, c Config) (VM, error)
}

// VM is a started virtual machine. Its methods are safe for concurrent use.
type VM interface {
	// Agent is the byte stream to the guest's agent. The same connection is
	// returned every time; Kill closes it.
	Agent() net.Conn
	// Console returns a copy of the last bytes that the guest's kernel wrote to its
	// console: hostile text, at most Config.ConsoleLimit bytes.
	Console() []byte
	// Done is closed when the VM has ended and its process was reaped.
	Done() <-chan struct{}
	// Exit says why the VM ended; the zero Exit before Done.
	Exit() Exit
	// Pause stops the guest's processors and returns when they stand.
	Pause(ctx context.Context) error
	// Resume lets a paused guest go on. Both are idempotent; after the end they
	// return ErrEnded.
	Resume(ctx context.Context) error
	// Listening is closed when the guest's agent has opened its end of the stream
	// for the first time. It stays open where the VM goes on from a frozen one.
	Listening() <-chan struct{}
	// Insert puts a file into the slot of the disk with this serial that was empty at
	// the start, in place of what it holds, while the guest does not use the disk. The
	// file is duplicated. Without a file the slot is empty again.
	Insert(ctx context.Context, d Disk) error
	// Share adds an entry to a share that Grows. The guest sees it at once.
	Share(ctx context.Context, tag string, e ShareEntry) error
	// Unshare takes an entry away that Share has added. Files that the guest has open stay so until it
	// closes them.
	Unshare(ctx context.Context, tag string, e ShareEntry) error
	// Plug gives the running VM a further network interface, with a Tap, which is duplicated. The guest learns of it
	// in its own time. There are at most MaxNICs at once, and no two with the same address.
	Plug(ctx context.Context, n NIC) error
	// Unplug takes an interface away that Plug has given, by its hardware address. No frame passes any more from the
	// beginning; a guest that does not let go of it until ctx ends keeps its place, without what carries frames.
	Unplug(ctx context.Context, mac string) error
	// Attach gives the running VM a further disk, whose file is duplicated. The guest learns of it in its own time. There are at most MaxDisks
	// at once, with those of the start.
	Attach(ctx context.Context, d Disk) error
	// Detach takes a disk away that Attach has given, by its serial, when the guest has let go of it. If it does not until ctx ends
	// the VM keeps the disk.
	Detach(ctx context.Context, serial string) error
	// Grow makes the VM one of this size, each at most what its Config allows; less than at the start, or than there are
	// processors, changes nothing of it. It returns when the guest has all of the memory, or with an error that wraps that of ctx, after which what
	// was added is taken back; the guest has to put processors into use itself. Memory that is less than
	// before is asked back without waiting: a guest gives what it does not use.
	Grow(ctx context.Context, memoryBytes uint64, vcpus int) error
	// Freeze stops a VM with a MemoryFile for good and writes to state what is not in that
	// file. The caller kills the VM in any case; after success memory and state
	// are what Frozen takes.
	Freeze(ctx context.Context, state *os.File) error
	// Save stops a VM that went on from a frozen or saved one, and writes the process of its
	// monitor to two empty files: pages, and resumer, a program. The caller kills the VM in any
	// case, or lets it go on by Resume; after success the files and what is returned
	// are Saved, but for the files' paths. Files of shares that the guest has open stay open, in copies of the
	// VM, too; one that could not be is a *FileError.
	Save(ctx context.Context, pages, resumer *os.File) (*Saved, error)
	// Kill ends the VM at once, waits until nothing is left of it and
	// releases its resources. The error says what could not be released.
	Kill() error
	// Info describes the running VM for people.
	Info() Info
	// Memory says what the VM takes of the host's memory at this moment. It
	// costs the host milliseconds. After the end it returns ErrEnded.
	Memory() (Memory, error)
}
