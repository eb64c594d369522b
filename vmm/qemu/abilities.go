package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"manis/vmm"
	"manis/vmm/jail"
)

// The range of QEMU versions that the tests have run with, major and minor.
var (
	OldestTested = [2]int{7, 2}
	NewestTested = [2]int{10, 0}
)

// needed are the types that a VM is built from, as QEMU lists them.
var needed = []string{
	q35, "pvpanic", "isa-serial", "virtio-serial-pci", "virtserialport", "virtio-blk-pci",
	"virtio-net-pci", "virtio-9p-pci", "virtio-rng-pci", "memory-backend-memfd",
}

// q35 stands for the machine type, whose name holds QEMU's version.
const q35 = "q35"

// Abilities is what an installed QEMU can do.
type Abilities struct {
	// Version as the program says it, Major and Minor of it.
	Version      string
	Major, Minor int
	// Missing are device types that VMs need and this build lacks.
	Missing []string
	// TCG and KVM say whether the build has the accelerator.
	TCG, KVM bool
	// Jail is what confined the QEMU that was asked.
	Jail []vmm.Confinement
}

// Tested compares the version with the tested range: -1 is older, 1 is newer.
func (a Abilities) Tested() int {
	v := [2]int{a.Major, a.Minor}
	switch {
	case slices.Compare(v[:], OldestTested[:]) < 0:
		return -1
	case slices.Compare(v[:], NewestTested[:]) > 0:
		return 1
	}
	return 0
}

// Abilities asks QEMU, started in a jail with a machine that has nothing.
// Errors are like those of Start.
func (d *Driver) Abilities(ctx context.Context) (_ Abilities, err error) {
	var a Abilities
	if err := d.Prepare(); err != nil {
		return a, err
	}
	dir, err := os.MkdirTemp("", "manis-qemu-")
	if err != nil {
		return a, err
	}
	defer os.Remove(dir)
	conn, theirs, err := pair()
	if err != nil {
		return a, err
	}
	defer theirs.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		conn.Close()
		return a, err
	}
	defer errR.Close()
	defer errW.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		conn.Close()
		return a, err
	}
	defer null.Close()
	if _, err := conn.Write([]byte(negotiate)); err != nil {
		conn.Close()
		return a, err
	}
	may, err := calls()
	if err != nil {
		conn.Close()
		return a, err
	}
	p, err := jail.Start(jail.Config{
		Closure: d.install.Closure, Dir: dir, Calls: may, Name: dir,
		Descriptors: []*os.File{null, errW, errW, theirs},
		Args:        append([]string{"-machine", "none", "-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control"}, always...),
	})
	if err != nil {
		conn.Close()
		return a, startError(err)
	}
	theirs.Close()
	errW.Close()
	m := newMonitor(conn, func(event) {})
	said := newTail(stderrLimit)
	var readers sync.WaitGroup
	readers.Go(m.run)
	readers.Go(func() { said.drain(errR) })
	defer func() {
		p.Signal(unix.SIGKILL)
		<-p.Done()
		readers.Wait()
		err = errors.Join(err, p.Release())
	}()

	select {
	case <-m.greeted:
	case <-m.done:
		p.Status()
		return a, fmt.Errorf("%w: %s", vmm.ErrRejected, readable(said.bytes()))
	case <-ctx.Done():
		return a, fmt.Errorf("wait for QEMU: %w", ctx.Err())
	}
	a.Version = m.version
	if _, err := fmt.Sscanf(m.version, "%d.%d.", &a.Major, &a.Minor); err != nil {
		return a, fmt.Errorf("QEMU's version is %q: %w", m.version, err)
	}
	facts, err := p.Verify()
	if err != nil {
		return a, fmt.Errorf("%w: %w", vmm.ErrNotJailed, err)
	}
	a.Jail = confinements(facts)
	var types []struct{ Name string }
	if err := m.execute(ctx, "qom-list-types", map[string]bool{"abstract": false}, &types); err != nil {
		return a, err
	}
	has := make(map[string]bool, len(types))
	for _, t := range types {
		has[t.Name] = true
		if strings.HasPrefix(t.Name, "pc-q35-") {
			has[q35] = true
		}
	}
	a.TCG, a.KVM = has["tcg-accel"] || len(d.install.Closure.Loads) > 0, has["kvm-accel"]
	for _, name := range needed {
		if !has[name] {
			a.Missing = append(a.Missing, name)
		}
	}
	return a, nil
}

// startError gives the jail's errors the driver's sentinels.
func startError(err error) error {
	if errors.Is(err, jail.ErrUnsupported) {
		return fmt.Errorf("%w: %w", vmm.ErrNotJailed, err)
	}
	return fmt.Errorf("%w: start QEMU: %w", vmm.ErrRejected, err)
}

func confinements(facts []jail.Fact) []vmm.Confinement {
	var list []vmm.Confinement
	for _, f := range facts {
		list = append(list, vmm.Confinement{Name: f.Name, InForce: f.InForce, Detail: f.Detail})
	}
	return list
}
