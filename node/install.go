package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Install brings the release in a directory to the node, has containerd know it, and removes versions that nothing uses any
// more. What is done already is not done again. It returns the release's name.
func (h *Host) Install(ctx context.Context, release, version string) (string, error) {
	root, err := h.open()
	if err != nil {
		return "", err
	}
	defer root.Close()
	name, err := Identify(release, version)
	if err != nil {
		return "", err
	}
	lock, err := h.lock(root)
	if err != nil {
		return name, err
	}
	defer lock.Close()
	e, err := h.ask(ctx)
	if err != nil {
		return name, err
	}
	if err := h.bring(root, release, name); err != nil {
		return name, err
	}
	if err := h.use(root, name); err != nil {
		return name, err
	}
	changed, err := h.configure(root, e.modern())
	if err != nil {
		return name, err
	}
	if changed || !e.handles {
		if err := h.introduce(ctx, root); err != nil {
			return name, err
		}
	}
	return name, h.prune(root)
}

// introduce restarts containerd. One that does not come back gets its old configuration: a node without Manis is better than one without pods.
func (h *Host) introduce(ctx context.Context, root *os.Root) error {
	err := h.restart(ctx, true)
	var gone *silent
	if !errors.As(err, &gone) || ctx.Err() != nil {
		return err
	}
	h.Log("%v; taking the drop-in away again", err)
	if _, undo := h.unconfigure(root); undo != nil {
		return errors.Join(err, undo)
	}
	return errors.Join(err, h.restart(ctx, false))
}

// ErrBusy is returned by Remove when processes are executed from what is to be removed.
var ErrBusy = errors.New("pods still run on Manis")

// Remove takes away what Install has brought. Until ctx ends it waits for pods that run, and then returns ErrBusy and has
// removed nothing; without waiting it does so at once.
func (h *Host) Remove(ctx context.Context, wait bool) error {
	root, err := h.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(rel(h.Prefix)); errors.Is(err, os.ErrNotExist) {
		// The drop-in may be there all the same.
		if _, err := root.Stat(rel(h.DropIn)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	lock, err := h.lock(root)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := h.idle(ctx, root, wait); err != nil {
		return err
	}
	if _, err := h.unconfigure(root); err != nil {
		return err
	}
	// A containerd that does not run reads its configuration when it does.
	if e, err := h.ask(ctx); err == nil && e.handles {
		if err := h.restart(ctx, false); err != nil {
			return err
		}
	}
	// One more may have been started before containerd forgot the handler.
	if err := h.idle(ctx, root, wait); err != nil {
		return err
	}
	for _, name := range []string{h.current(), h.versions(), rel(h.Prefix) + "/" + newPrefix + "current", rel(h.Prefix) + "/" + lockName} {
		if err := root.RemoveAll(name); err != nil {
			return fmt.Errorf("remove /%s: %w", name, err)
		}
	}
	root.Remove(rel(h.Prefix)) // if nothing else is there
	h.Log("removed Manis from the node")
	return nil
}

// idle returns when nothing is executed from any version.
func (h *Host) idle(ctx context.Context, root *os.Root, wait bool) error {
	for said := false; ; said = true {
		n, err := h.busy(root)
		if err != nil || n == 0 {
			return err
		}
		if !wait || ctx.Err() != nil {
			return fmt.Errorf("%w: %d processes; nothing was removed that they use (delete the pods first)", ErrBusy, n)
		}
		if !said {
			h.Log("waiting for pods that run: %d processes", n)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// Status is what there is on a node.
type Status struct {
	Versions []Version `json:"versions"`
	// Containerd is its version, Handled whether it knows the handler.
	Containerd string `json:"containerd,omitempty"`
	Handled    bool   `json:"handled"`
	QEMU       string `json:"qemu,omitempty"`
	// Problems are why pods could not be started, and what to do; none: they can.
	Problems []string `json:"problems"`
}

// Status looks, and changes nothing.
func (h *Host) Status(ctx context.Context) (Status, error) {
	s := Status{Problems: []string{}}
	root, err := h.open()
	if err != nil {
		return s, err
	}
	defer root.Close()
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	if s.Versions, err = h.installed(root); err != nil {
		problem("%v", err)
	}
	current := h.inUse(root)
	if current == "" {
		problem("Manis is not installed in %s", h.Prefix)
	}
	for _, f := range files {
		if current == "" {
			break
		}
		if fi, err := root.Stat(h.current() + "/" + f.name); err != nil || !fi.Mode().IsRegular() {
			problem("%s/current/%s is missing", h.Prefix, f.name)
		}
	}
	e, err := h.ask(ctx)
	s.Containerd, s.Handled = e.version, e.handles
	if err != nil {
		problem("%v", err)
	} else if !e.handles {
		problem("containerd does not know the handler %s", h.Handler)
	}
	if s.QEMU, err = h.qemu(ctx); err != nil {
		problem("%v", err)
	}
	return s, nil
}
