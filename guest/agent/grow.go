package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// processors is the kernel's directory of them.
const processors = "/sys/devices/system/cpu"

// growTime bounds the wait for what the host has plugged in, and growStep is the pause between two looks.
const (
	growTime = 20 * time.Second
	growStep = 2 * time.Millisecond
)

// Grow puts into use what the machine was given.
func (s *service) Grow(ctx context.Context, r *api.GrowRequest) (*api.Empty, error) {
	s.mu.Lock()
	ready, had := s.isSetUp, s.memoryBytes
	s.mu.Unlock()
	if !ready {
		return nil, errNotSetUp
	}
	ctx, cancel := context.WithTimeout(ctx, growTime)
	defer cancel()
	if err := useProcessors(ctx, int(r.Vcpus)); err != nil {
		return nil, err
	}
	for {
		total, err := totalMemory()
		if err != nil {
			return nil, err
		}
		if total >= had+r.MemoryBytes {
			// It may be about to give some back.
			return new(api.Empty), limitContainers(had + r.MemoryBytes)
		}
		if err := lookAgain(ctx); err != nil {
			return nil, fmt.Errorf("the machine has %d MiB of memory, and should have %d: %w", total>>20, (had+r.MemoryBytes)>>20, err)
		}
	}
}

// useProcessors has the first of them in use and no others, waiting for those that are not there yet.
func useProcessors(ctx context.Context, wanted int) error {
	if wanted == 0 {
		return nil
	}
	for n := 1; ; n++ { // the first one cannot be taken out of use
		path := processors + "/cpu" + strconv.Itoa(n) + "/online"
		value := "1"
		if n >= wanted {
			value = "0"
		}
		for {
			err := writeFile(path, value)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("processor %d: %w", n, err)
			}
			if n >= wanted {
				return nil
			}
			if err := lookAgain(ctx); err != nil {
				return fail(codes.DeadlineExceeded, fmt.Errorf("processor %d is not there: %w", n, err))
			}
		}
	}
}

// lookAgain waits a little, or fails when the time is over.
func lookAgain(ctx context.Context) error {
	select {
	case <-time.After(growStep):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// totalMemory is what the kernel has to give away, bytes.
func totalMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	return info.Totalram * uint64(info.Unit), nil
}
