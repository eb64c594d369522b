package agent

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/launch"
)

// makeTime gives the children of the calling thread a time namespace (time_namespaces(7)).
func makeTime(t *api.TimeNamespace) error {
	if t == nil {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("make time namespace: %w", err)
	}
	offsets := fmt.Sprintf("monotonic %d %d\nboottime %d %d\n", t.MonotonicSeconds, t.MonotonicNanoseconds, t.BoottimeSeconds, t.BoottimeNanoseconds)
	if err := writeFileAt(procDir, strconv.Itoa(unix.Gettid())+"/timens_offsets", offsets); err != nil {
		return fail(codes.InvalidArgument, fmt.Errorf("set the clocks of the time namespace (no clock can go below zero): %w", cause(err)))
	}
	return nil
}

// enterTime appends the step by which a further process gets into the container's
// time namespace: unlike others it can only be joined by a process with a single thread.
func (c *container) enterTime(b *launch.Program, of int) {
	if c.request.Time != nil {
		b.Setns("time", of, unix.CLONE_NEWTIME)
	}
}
