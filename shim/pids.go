package shim

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A container of a pod has no process on the host, but containerd wants a process id, by which it names the
// container's namespaces to others (/proc/PID/ns/pid). A thread of the shim's that does nothing has one, too.

// thread is such a thread.
type thread struct {
	id  uint32
	end chan struct{}
}

func newThread() *thread {
	t := &thread{end: make(chan struct{})}
	started := make(chan struct{})
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		t.id = uint32(unix.Gettid())
		close(started)
		<-t.end
	}()
	<-started
	if t.id == uint32(os.Getpid()) {
		// The first thread is the process itself, and nobody can end it alone.
		next := newThread()
		close(t.end)
		return next
	}
	return t
}

// release ends the thread. Nil has none.
func (t *thread) release() {
	if t != nil {
		close(t.end)
	}
}

// procPath reports whether a path is that of a namespace of a process.
func procPath(path string, pid uint32) bool {
	return strings.HasPrefix(path, fmt.Sprintf("/proc/%d/ns/", pid))
}
