package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"manis/bundle"
	"manis/pod"
)

// container is a task of containerd's: one container of the pod.
type container struct {
	id, bundle string
	// pause is set for the one that is played here.
	pause  bool
	rootfs string // where its root is mounted for it; empty: nothing was mounted
	init   *process
	layer  string  // its writable layer, where the machine writes that; empty: there is none such
	thread *thread // stands for it on the host; nil: the machine does
	share  share   // guarded by the service's lock

	mu    sync.Mutex
	execs map[string]*process
}

// process finds one of its processes.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[execID]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("process %s of container %s: %w", execID, c.id, errdefs.ErrNotFound)
}

// maxExecs bounds the further processes that wait for their start or their deletion.
const maxExecs = 1024

func (c *container) add(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.execs[p.execID] != nil:
		return fmt.Errorf("process %s of container %s: %w", p.execID, c.id, errdefs.ErrAlreadyExists)
	case len(c.execs) >= maxExecs:
		return fmt.Errorf("container %s has %d processes that nobody has deleted: %w", c.id, maxExecs, errdefs.ErrFailedPrecondition)
	}
	c.execs[p.execID] = p
	return nil
}

func (c *container) remove(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.execID] == p {
		delete(c.execs, p.execID)
	}
}

// awaitExecs waits until no further process runs, which the end of the first one kills.
func (c *container) awaitExecs(limit time.Duration) {
	c.mu.Lock()
	var running []*process
	for _, p := range c.execs {
		p.mu.Lock()
		if p.told && p.exit == nil {
			running = append(running, p)
		}
		p.mu.Unlock()
	}
	c.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, p := range running {
		select {
		case <-p.done:
		case <-timer.C:
			return
		}
	}
}

// layersOf finds what the machine is to lay over each other for the root; nil: it is mounted on the host.
func (c *container) layersOf(g *ground, mounts []mount.Mount) *pod.Layers {
	if !isStack(mounts) {
		return layers(lowerStore(g.places), mounts)
	}
	l, err := straight(mounts, g.pod.CanAttach)
	if err != nil {
		fmt.Fprintf(os.Stderr, "container %s: its root is mounted on the host, and not in the virtual machine of its layers: %v\n", c.id, err)
		return nil
	}
	return l
}

// mountRoot mounts what containerd gives as the root, where the configuration looks for it.
func (c *container) mountRoot(mounts []mount.Mount, b *bundle.Bundle) error {
	if len(mounts) == 0 {
		return nil
	}
	if c.rootfs = rootOf(b); c.rootfs == "" {
		return fmt.Errorf("config.json: root.path: is missing: %w", errdefs.ErrInvalidArgument)
	}
	var err error
	if isStack(mounts) {
		err = assemble(mounts, c.rootfs, c.bundle)
	} else {
		err = mount.All(mounts, c.rootfs)
	}
	if err != nil {
		c.unmountRoot()
		return fmt.Errorf("mount the container's root: %w", err)
	}
	return nil
}

// unmountRoot leaves the root to its snapshotter.
func (c *container) unmountRoot() error {
	switch {
	case c.layer != "":
		// What the guest has put there does not keep the container from being removed.
		if err := translate(filepath.Join(c.layer, "fs")); err != nil {
			fmt.Fprintf(os.Stderr, "container %s: what it has changed may be seen without what it has hidden: %v\n", c.id, err)
		}
	case c.rootfs != "":
		return unmount(c.rootfs)
	}
	return nil
}
