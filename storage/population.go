package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

const (
	copyingFile    = "copying"
	populatedFile  = "populated"
	populationLock = "population.lock"
)

// Population is the right to copy an image's content into a new volume. The copy itself is done by the agent
// in the guest. Done makes it count; Close without Done, or the death of the process, makes the next user of
// the volume begin anew.
type Population struct {
	volumes *Volumes
	name    string
	lock    *os.File
}

// Populate returns the right to fill a volume that has never been used, or nil when there is nothing to do:
// when the volume was populated before, or has content of another origin. While another process fills the
// volume it waits. What an interrupted copy left is removed.
func (v *Volumes) Populate(ctx context.Context, name string) (*Population, error) {
	if _, err := v.Get(name); err != nil {
		return nil, err
	}
	if populated, err := exists(v.path(name, populatedFile)); populated || err != nil {
		return nil, err
	}
	lock, err := lockFile(ctx, v.path(name, populationLock))
	if err != nil {
		return nil, fmt.Errorf("populate volume %s: %w", name, err)
	}
	need, err := v.preparePopulation(name)
	if !need || err != nil {
		lock.Close()
		if err != nil {
			return nil, fmt.Errorf("populate volume %s: %w", name, err)
		}
		return nil, nil
	}
	return &Population{volumes: v, name: name, lock: lock}, nil
}

// preparePopulation runs with the volume's population lock held.
func (v *Volumes) preparePopulation(name string) (need bool, err error) {
	if populated, err := exists(v.path(name, populatedFile)); populated || err != nil {
		return false, err
	}
	data := v.path(name, dataDir)
	interrupted, err := exists(v.path(name, copyingFile))
	if err != nil {
		return false, err
	}
	if interrupted {
		if err := removeContent(data); err != nil {
			return false, err
		}
		return true, nil
	}
	if is, err := empty(data); !is || err != nil {
		return false, err
	}
	return true, v.mark(name, copyingFile)
}

// Done records that the copy is complete, and releases the right. The copy has to be durable before.
func (p *Population) Done() error {
	defer p.Close()
	if err := p.volumes.mark(p.name, populatedFile); err != nil {
		return fmt.Errorf("populate volume %s: %w", p.name, err)
	}
	return nil
}

// Close releases the right. After Done it does nothing.
func (p *Population) Close() error {
	if p.lock == nil {
		return nil
	}
	err := p.lock.Close()
	p.lock = nil
	return err
}

// mark makes an empty file in the volume's folder durable.
func (v *Volumes) mark(name, file string) error {
	f, err := os.OpenFile(v.path(name, file), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	return syncDir(v.path(name))
}

// removeContent empties a directory and leaves itself, with its owner and attributes, in place.
func removeContent(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeTree(dir + "/" + e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
