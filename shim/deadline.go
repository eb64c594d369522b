package shim

import (
	"context"
	"fmt"
	"time"
)

// How long a guest may take for what containerd asks of it. containerd itself waits for ever with most requests, and a
// guest that is hung shall not hold up a pod's end.
const (
	answerTime = 10 * time.Second // for what takes a moment
	startTime  = 2 * time.Minute  // to start a process: there may be many, on a busy host
	createTime = 4 * time.Minute  // to make a container, and the machine
)

// silence says that a guest has not answered in time. containerd knows it for a deadline.
type silence struct{ limit time.Duration }

func (s *silence) Error() string {
	return fmt.Sprintf("the virtual machine of the pod has not answered within %v: its guest is hung, or the host has no time for it", s.limit)
}

func (s *silence) Unwrap() error { return context.DeadlineExceeded }

// within makes a request to the guest that may take so long.
func within(ctx context.Context, limit time.Duration, request func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := request(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return &silence{limit}
	}
	return err
}
