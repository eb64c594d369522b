package pod

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Attendant is the host's side of a process of the guest: where its streams are, and who hears of its end.
type Attendant struct {
	Streams Streams
	// Ended is called once, by a goroutine of the pod's, when the process has ended and its output has been
	// handed over. The pod's methods may be called in it, but it holds up the rest of the container's end. It is not
	// called where the request to make the process has failed.
	Ended func(Exit)
}

// Streams are descriptors. They are the pod's from the request on, also when that fails: it closes each when the
// process has ended.
type Streams struct {
	// Stdin, Stdout and Stderr may be nil: there is no input, output is thrown away. A process with a
	// terminal has no Stderr.
	Stdin, Stdout, Stderr *os.File
	// Terminal is a terminal of the caller's in their place, whose size is the process's.
	Terminal *os.File
	// Patience is how long the end of a process waits for those who read what it has written; 0: for as long
	// as they take.
	Patience time.Duration
}

// files are all of the streams that there are.
func (s *Streams) files() []*os.File {
	var list []*os.File
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr, s.Terminal} {
		if f != nil {
			list = append(list, f)
		}
	}
	return list
}

// Exit is the end of a process.
type Exit struct {
	// Code is 0 to 255; 128 + n when signal n has killed it.
	Code int
	At   time.Time
	// OOM: the kernel of the guest has killed a process of the container for want of memory.
	OOM bool
	// Reason says why there is no exit code of the process's own: its machine ended. Empty: there is.
	Reason string
}

// exitGone is the exit code of a process whose pod ended without a word.
const exitGone = 128 + int(unix.SIGKILL)

// gone is the end of a process whose machine has ended, or never executed it.
func gone(code int, reason string) Exit { return Exit{Code: code, At: time.Now(), Reason: reason} }
