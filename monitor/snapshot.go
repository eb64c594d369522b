package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"manis/api/agent"
	"manis/api/monitor"
	"manis/container/spec"
	"manis/sandbox"
	"manis/snapshot"
	"manis/storage"
	"manis/trace"
	"manis/vmm"
)

// Checkpoint saves the container with its memory and disk.
func (f *front) Checkpoint(ctx context.Context, req *monitor.CheckpointRequest) (*monitor.Empty, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	if f.paused() {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is paused, unpause it before it is saved", f.cfg.ID[:12])
	}
	f.mu.Lock()
	boot := f.state.Boot
	f.mu.Unlock()
	if strings.HasPrefix(boot, "cold") {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s was booted: only one whose machine came from a template can be saved", f.cfg.ID[:12])
	}
	for _, m := range f.cfg.Mounts {
		if m.Type == "bind" || m.Type == "volume" {
			return nil, status.Errorf(codes.FailedPrecondition, "container %s has %s mounted: what is outside of the container cannot be saved with it", f.cfg.ID[:12], m.Destination)
		}
	}
	if !f.checkpointing.TryLock() {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is being saved already", f.cfg.ID[:12])
	}
	defer f.checkpointing.Unlock()
	info := snapshot.Info{Name: req.Name, Config: *f.cfg, Hook: req.Hook, Scratch: !f.cfg.ReadOnly && !f.cfg.Scratch.Memory}
	store := snapshot.Open(f.places.Snapshots())
	if err := store.Check(req.Name); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	away := false
	save := func(ctx context.Context, pages, resumer *os.File) (*vmm.Saved, error) {
		if err := sandbox.ParkAll(ctx, r.lines); err != nil {
			return nil, fmt.Errorf("the container does not read its input: %w", err)
		}
		if err := r.sandbox.Detach(ctx, true); err != nil {
			sandbox.UnparkAll(r.lines)
			return nil, err
		}
		away = true
		return r.sandbox.VM().Save(ctx, pages, resumer)
	}
	disk := func(path string) error {
		src, err := os.Open(f.scratchPath())
		if err != nil {
			return err
		}
		defer src.Close()
		return storage.CloneFile(ctx, src, path)
	}
	err = store.Create(ctx, info, save, disk)
	if err == nil && !req.LeaveRunning {
		f.mu.Lock()
		f.wantsStop = true
		f.mu.Unlock()
		sandbox.UnparkAll(r.lines)
		r.sandbox.Kill()
		<-r.ended
		return &monitor.Empty{}, nil
	}
	if away {
		// It runs on, whatever became of the snapshot.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), returnTime)
		defer cancel()
		if e := f.comeBack(back, r); e != nil {
			r.sandbox.Kill()
			err = errors.Join(err, fmt.Errorf("the container cannot go on and was ended: %w", e))
		}
	}
	if err != nil {
		return nil, wireError(err)
	}
	return &monitor.Empty{}, nil
}

// returnTime bounds how long a container may take to run on after it was saved.
const returnTime = 30 * time.Second

// comeBack lets a container that was saved run on.
func (m *Monitor) comeBack(ctx context.Context, r *round) error {
	if err := r.sandbox.VM().Resume(ctx); err != nil {
		return err
	}
	if err := r.sandbox.Reattach(ctx, r.setup); err != nil {
		return err
	}
	return r.sandbox.Return(ctx, containerID, r.lines)
}

// goOn makes the machine of a container that goes on from a snapshot.
func (m *Monitor) goOn(ctx context.Context, b *machine, cfg *sandbox.Config, s *snapshot.Snapshot) (err error) {
	ctx, span := trace.Start(ctx, "snapshot")
	defer span.End()
	b.boot, b.continued, b.hook = "snapshot "+m.cfg.Snapshot, true, s.Info.Hook
	b.request = &agent.CreateContainerRequest{Id: containerID, Process: &agent.Process{}}
	b.sandbox, err = Continue(ctx, *cfg, s.Machine())
	return err
}

// Continue makes the machine that config describes, which goes on from a saved one that came from
// a template of this size.
func Continue(ctx context.Context, config sandbox.Config, saved *vmm.Saved) (*sandbox.Sandbox, error) {
	config.VM = TemplateOf(config.VM)
	config.VM.Saved = saved
	if config.MAC == "" {
		config.MAC = templateMAC
	}
	return sandbox.Start(ctx, config)
}

// fork puts the snapshot's writable layer in the place of the container's.
func (m *Monitor) fork(ctx context.Context, s *snapshot.Snapshot) error {
	disk, err := s.Scratch()
	if disk == nil || err != nil {
		return err
	}
	defer disk.Close()
	if err := os.Remove(m.scratchPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return storage.CloneFile(ctx, disk, m.scratchPath())
}

// hookTime bounds a snapshot's hook.
const hookTime = time.Minute

// runHook has the application make itself unique, before anybody reaches it.
func (m *Monitor) runHook(ctx context.Context, r *round, hook []string) error {
	if len(hook) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	p, err := spec.BuildExec(m.cfg, spec.ExecOptions{Args: hook})
	if err != nil {
		return err
	}
	const id = "hook"
	if _, err := r.sandbox.Exec(ctx, &agent.ExecRequest{Id: containerID, ExecId: id, Process: p}); err != nil {
		return fmt.Errorf("run the snapshot's hook: %w", err)
	}
	exit, err := r.sandbox.Wait(ctx, containerID, id)
	if err != nil {
		return fmt.Errorf("run the snapshot's hook: %w", err)
	}
	if exit.ExitCode != 0 {
		return fmt.Errorf("the snapshot's hook %q ended with exit code %d", hook, exit.ExitCode)
	}
	return nil
}
