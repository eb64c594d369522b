package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
	"manis/bundle"
	"manis/sandbox"
	"manis/snapshot/dump"
	"manis/vmm"
)

// CheckpointRequest saves a running container.
type CheckpointRequest struct {
	ID string
	// Image is the directory of the image, absolute.
	Image string
	// LeaveRunning lets the container run on. Otherwise it has stopped when the answer comes.
	LeaveRunning bool
}

// Checkpointed says what a checkpoint took.
type Checkpointed struct {
	// Stood is how long the container did not run, as far as it was for the checkpoint.
	Stood time.Duration
	// Bytes is the size of what was saved of its machine.
	Bytes int64
}

// Checkpoint saves a container into a directory, from which others may go on. A container that
// cannot be saved runs on.
func (c *Client) Checkpoint(ctx context.Context, r *CheckpointRequest) (*Checkpointed, error) {
	done := new(Checkpointed)
	return done, c.call(ctx, "checkpoint", r, done)
}

// hostMounts are what a container has of the host's files, by where it sees them.
func hostMounts(plan *bundle.Plan, entries []vmm.ShareEntry) []dump.Mount {
	destinations := map[string]string{plan.Create.Rootfs.Share: "/"}
	for _, m := range plan.Create.Mounts {
		if m.Type == "share" {
			destinations[m.Source] = m.Destination
		}
	}
	var all []dump.Mount
	for _, e := range entries {
		all = append(all, dump.Mount{Name: e.Name, Destination: destinations[bindsTag+"/"+e.Name], File: e.File})
	}
	return all
}

// checkpoint saves the container with its machine.
func (m *member) checkpoint(ctx context.Context, r *CheckpointRequest) (*Checkpointed, error) {
	p := m.pod
	// No other container comes meanwhile.
	p.making.Lock()
	defer p.making.Unlock()
	// Nor does its network change.
	if p.network != nil {
		p.network.mu.Lock()
		defer p.network.mu.Unlock()
	}
	if err := m.savable(); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(r.Image) {
		return nil, fmt.Errorf("the directory of a checkpoint must be absolute, not %q", r.Image)
	}
	key, err := dump.OpenKey(p.places.Root)
	if err != nil {
		return nil, err
	}
	info := p.sandbox.VM().Info()
	saved := dump.Container{ID: m.id, MemoryBytes: info.MemoryBytes, VCPUs: info.VCPUs, Terminal: m.streams.terminal, Paused: m.isPaused(), Mounts: m.mounts}
	done := new(Checkpointed)
	var stands time.Time // since when it does not run
	lost := false
	err = dump.Write(ctx, r.Image, key, saved, func(ctx context.Context, pages, resumer *os.File) (_ *vmm.Saved, err error) {
		if err := sandbox.ParkAll(ctx, m.streams.lines); err != nil {
			return nil, fmt.Errorf("the container does not read its input: %w", err)
		}
		if err := m.detach(ctx); err != nil {
			sandbox.UnparkAll(m.streams.lines)
			lost = p.sandbox.Detached()
			return nil, err
		}
		stands = time.Now()
		machine, err := p.sandbox.VM().Save(ctx, pages, resumer)
		if st, e := pages.Stat(); e == nil {
			done.Bytes = st.Size()
		}
		return machine, err
	})
	switch {
	case err == nil && !r.LeaveRunning:
		err = m.stop()
	case lost:
		// Nobody could reach it any more.
		err = errors.Join(err, p.sandbox.Kill())
		<-m.done
		err = fmt.Errorf("the container was ended: %w", err)
	case !stands.IsZero():
		// It runs on, whatever became of the checkpoint.
		if e := m.comeBack(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("the container cannot go on and was ended: %w", e), m.stop())
		}
	}
	done.Stood = time.Since(stands)
	return done, inItsWords(err, m.mounts)
}

// detachTime bounds how long the guest's agent may take to end its session.
const detachTime = time.Minute

func (m *member) detach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTime)
	defer cancel()
	return m.pod.sandbox.Detach(ctx, true)
}

// savable says why a container cannot be saved, as far as that is known before anything is done. The network's
// lock is held.
func (m *member) savable() error {
	p := m.pod
	if err := m.need("checkpoint", specs.StateRunning); err != nil {
		return err
	}
	p.mu.Lock()
	several := p.made != 1 || p.live() > 1
	p.mu.Unlock()
	m.mu.Lock()
	execs := len(m.execs)
	m.mu.Unlock()
	switch {
	case runtime.GOARCH != "amd64":
		return errors.New("checkpoints are made on x86-64 only")
	case p.sandbox.VM().Info().Accel == vmm.AccelKVM:
		return errors.New("the container's machine runs on KVM, and what KVM knows of it is not in QEMU's process, which is what is saved: " +
			"checkpoints need an emulated machine (annotation manis.accel=tcg)")
	case strings.HasPrefix(p.boot, "cold"):
		return fmt.Errorf("the container's machine was booted, %s: only one that came from a template can be saved", p.boot)
	case several:
		return errors.New("the container shares its machine with others of its pod: only one that has a machine of its own can be saved")
	case slices.ContainsFunc(m.mounts, func(d dump.Mount) bool { return d.Destination == "" }):
		return errors.New("the container's root filesystem is laid together in its machine, of an image and a writable layer: only one that is a directory of the host can be saved")
	case p.network != nil && slices.ContainsFunc(p.network.taken.Guest.Interfaces, func(i *agent.Interface) bool { return i.Plugged }):
		return errors.New("network interfaces were plugged into the container's machine while it ran, after its first: a machine with these cannot be saved")
	case execs > 0:
		return fmt.Errorf("%d processes that exec has added still run: their callers could not go on with them", execs)
	}
	return nil
}

// returnTime bounds how long a container may take to run on after it was saved.
const returnTime = 30 * time.Second

// comeBack lets a container that was saved run on.
func (m *member) comeBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), returnTime)
	defer cancel()
	p := m.pod
	if err := p.sandbox.VM().Resume(ctx); err != nil {
		return err
	}
	setup := p.setup
	if p.network != nil {
		setup = proto.CloneOf(setup)
		setup.Network = p.network.taken.Guest
	}
	if err := p.sandbox.Reattach(ctx, setup); err != nil {
		return err
	}
	if err := p.sandbox.Return(ctx, m.id, m.streams.lines); err != nil {
		return err
	}
	if p.servers == nil {
		return nil
	}
	// The name servers' streams have ended with the session.
	p.servers.served.Wait()
	if err := again(ctx, func() error { return p.resolveAll(ctx) }); err != nil {
		fmt.Fprintln(os.Stderr, err) // as when a network comes that has one which cannot be served
	}
	return nil
}

// again has name servers answer in a further session. The agent lets go of those of the last one in its own time.
func again(ctx context.Context, resolve func() error) error {
	for {
		err := resolve()
		if status.Code(err) != codes.AlreadyExists || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// stop ends the machine under the container, and returns when that has stopped.
func (m *member) stop() error {
	err := m.pod.sandbox.Kill()
	sandbox.UnparkAll(m.streams.lines)
	<-m.done
	return err
}

// inItsWords names a file in an error as the container does.
func inItsWords(err error, mounts []dump.Mount) error {
	var f *vmm.FileError
	if !errors.As(err, &f) {
		return err
	}
	name := f.Path
	for _, x := range mounts {
		if rest, ok := strings.CutPrefix(f.Path, x.Name); ok && (rest == "" || rest[0] == '/') {
			name = path.Join(x.Destination, rest)
		}
	}
	return fmt.Errorf("the container has the file %q open: %s", name, f.Reason)
}
