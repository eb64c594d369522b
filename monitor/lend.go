package monitor

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"manis/trace"
)

// lendTime bounds how long a guest may take to write what was copied to its disks. It is
// far longer than that of a stop: files may have come faster than the disk takes them.
const lendTime = 2 * time.Minute

// lend boots the machine of a container that does not run, with everything but its
// process, for as long as a front end copies files. The container's state, its logs and
// its ports are left alone.
func (m *Monitor) lend(ctx context.Context) {
	defer os.Remove(copyLog(m.c))
	err := m.lendRound(ctx, m.run)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.copyErr = err
	m.final = true
	m.change()
}

// lendRound is round for a copy. The error says why what was copied may be lost.
func (m *Monitor) lendRound(ctx context.Context, r *round) error {
	defer close(r.ended)
	bootCtx, cancelBoot := context.WithCancel(ctx)
	defer cancelBoot()
	defer context.AfterFunc(r.boot, cancelBoot)()
	machine, err := m.boot(bootCtx)
	defer machine.release()
	if err == nil {
		r.sandbox = machine.sandbox
		defer func() {
			if err := r.sandbox.Kill(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
		rootfsCtx, span := trace.Start(bootCtx, "rootfs")
		_, err = r.sandbox.CreateContainer(rootfsCtx, machine.request)
		span.End()
	}
	if err == nil {
		err = machine.created()
	}
	if err != nil && r.boot.Err() != nil {
		err = errNotStarted
	}
	m.mu.Lock()
	m.startErr = err
	close(m.started)
	m.mu.Unlock()
	if err != nil {
		return nil // every request hears it, and nothing was copied
	}
	m.awaitStop(ctx, r)
	callCtx, cancel := context.WithTimeout(ctx, lendTime)
	defer cancel()
	if err := r.sandbox.RemoveContainer(callCtx, containerID); err != nil {
		return fmt.Errorf("write what was copied to the disk: %w", err)
	}
	return r.sandbox.Stop(ctx)
}

// awaitStop waits until nobody wants the container's files any more, or its machine has
// ended.
func (m *Monitor) awaitStop(ctx context.Context, r *round) {
	for {
		m.mu.Lock()
		changed, stop := m.changed, m.wantsStop
		m.mu.Unlock()
		if stop {
			return
		}
		select {
		case <-changed:
		case <-r.sandbox.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// leave ends a copy and waits until its machine is gone: in order, or by force.
func (f *front) leave(ctx context.Context, force bool) error {
	f.run.cancelBoot()
	if r, err := f.withFiles(ctx); err == nil && force {
		r.sandbox.Kill()
	}
	select {
	case <-f.done:
		f.mu.Lock()
		defer f.mu.Unlock()
		return wireError(f.copyErr)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// withFiles returns the round whose container's files can be copied, and waits for it while
// its machine boots. The code Aborted says that there is none any more.
func (f *front) withFiles(ctx context.Context) (*round, error) {
	f.mu.Lock()
	r := f.run
	f.mu.Unlock()
	if !f.copying {
		select {
		case <-r.began:
		case <-r.ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if r, err := f.current(); err == nil {
			return r, nil
		}
		return nil, status.Errorf(codes.Aborted, "container %s is not running", f.cfg.ID[:12])
	}
	select {
	case <-f.started:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return r, wireError(f.startErr)
}
