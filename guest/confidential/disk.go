package confidential

import (
	"fmt"
	"time"

	"manis/audit"
	"manis/guest/scratch"
)

// encrypted is a disk of which the host can neither read anything nor change anything unnoticed: scratch.Disk.
type encrypted interface {
	Path() string
	// Mismatches is how many blocks were not what had been written there.
	Mismatches() (uint64, error)
	Remove() error
}

// makeDisk makes one.
var makeDisk = func(disk string, bytes uint64) (encrypted, error) { return scratch.Make(disk, bytes) }

// watched is a disk that is looked after.
type watched struct {
	encrypted
	// said is how many mismatches the log has.
	said uint64
	stop chan struct{}
}

// lookEvery is how long a mismatch waits for the log at most, while the container runs.
const lookEvery = time.Second

// Seal implements agent.Sealer. Whether the container may have such a disk was decided when it was permitted.
func (g *Guard) Seal(container, disk string, bytes uint64) (path, options string, unseal func() error, err error) {
	made, err := makeDisk(disk, bytes)
	if err != nil {
		return "", "", nil, err
	}
	d := &watched{encrypted: made, stop: make(chan struct{})}
	g.mu.Lock()
	g.disks[container] = d
	g.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.watch(container, d)
	}()
	return d.Path(), scratch.MountOptions, func() error {
		close(d.stop)
		<-ended
		g.mu.Lock()
		g.look(container, d, true)
		delete(g.disks, container)
		g.mu.Unlock()
		return d.Remove()
	}, nil
}

// watch looks at a disk again and again.
func (g *Guard) watch(container string, d *watched) {
	ticks := time.NewTicker(lookEvery)
	defer ticks.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-ticks.C:
			g.mu.Lock()
			g.look(container, d, false)
			g.mu.Unlock()
		}
	}
}

// look writes mismatches into the log that it does not have: the first, then only when there are twice as many, so that nobody can fill the log,
// and all at the last look. g.mu is held.
func (g *Guard) look(container string, d *watched, last bool) {
	n, err := d.Mismatches()
	if err != nil || n <= d.said || !last && n < 2*d.said {
		return
	}
	d.said = n
	g.log.Add(audit.Tampered, map[string]string{"container": g.index(container), "blocks": fmt.Sprint(n)})
}
