package pod

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/vmm"
)

// Layers are what the machine itself lays over each other for a root filesystem.
type Layers struct {
	// Image is a file with an EROFS of what is only read.
	Image string
	// Parts, in place of Image, are files with an EROFS each, lowest first, at most vmm.MaxParts. The machine has them as one disk.
	Parts []string
	// Layer is a directory with the subdirectories fs and work: an overlay's upper and work directory. What the
	// container changes is there at once.
	Layer string
	// Scratch, in place of Layer with Parts, is a file with an ext4, which has the directories upper and work, or gets them.
	Scratch string
}

// disks is how many disks the machine needs for them.
func (l *Layers) disks() int {
	n := 0
	if len(l.Parts) > 0 {
		n++
	}
	if l.Scratch != "" {
		n++
	}
	return n
}

// slotDisks is how many disks a machine may have from its start.
const slotDisks = 2

// CanAttach reports whether the machine has room for n more disks.
func (p *Pod) CanAttach(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n += slotDisks
	for _, m := range p.members {
		m.mu.Lock()
		n += len(m.disks)
		m.mu.Unlock()
	}
	return n <= vmm.MaxDisks
}

// attachLayers gives the machine the disks that a root filesystem is made of.
func (p *Pod) attachLayers(ctx context.Context, m *member, r *agent.RootFS, l *Layers) error {
	if l == nil || l.disks() == 0 {
		return nil
	}
	if len(l.Parts) > 0 {
		d := vmm.Disk{ReadOnly: true}
		defer func() {
			for _, f := range d.Parts {
				f.Close()
			}
		}()
		for _, path := range l.Parts {
			f, size, err := openLayer(path, os.O_RDONLY)
			if err != nil {
				return err
			}
			d.Parts = append(d.Parts, f)
			r.Parts = append(r.Parts, uint64(size))
		}
		var err error
		if r.Disk, err = p.plug(ctx, m, d); err != nil {
			return fmt.Errorf("layers of the root filesystem: %w", err)
		}
	}
	if l.Scratch != "" {
		f, _, err := openLayer(l.Scratch, os.O_RDWR)
		if err != nil {
			return err
		}
		defer f.Close()
		if r.ScratchDisk, err = p.plug(ctx, m, vmm.Disk{File: f}); err != nil {
			return fmt.Errorf("writable layer of the root filesystem: %w", err)
		}
	}
	return nil
}

// plug gives the machine a disk for a container, by a serial of its own.
func (p *Pod) plug(ctx context.Context, m *member, d vmm.Disk) (serial string, err error) {
	p.attached++
	d.Serial = fmt.Sprintf("raw%d", p.attached)
	if err := p.sandbox.VM().Attach(ctx, d); err != nil {
		return "", err
	}
	m.mu.Lock()
	m.disks = append(m.disks, d.Serial)
	m.mu.Unlock()
	return d.Serial, nil
}

// openLayer opens a regular file.
func openLayer(path string, how int) (f *os.File, size int64, err error) {
	f, err = os.OpenFile(path, how|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("layer of the root filesystem: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("layer of the root filesystem: %s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}
