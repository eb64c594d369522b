package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"manis/vmm"
)

// Driver starts QEMU.
type Driver struct {
	// Path is the QEMU program; empty looks for it in PATH and the usual places.
	Path string
	// Cache is a directory in which the driver remembers what it found out about
	// this host; empty finds it out in every process.
	Cache string

	once    sync.Once
	install *Installation
	tscKHz  int
	err     error
}

// New returns a driver for the QEMU at path, or the one in PATH if it is
// empty. Nothing is looked for before Prepare or the first Start.
func New(path string) *Driver { return &Driver{Path: path} }

// Prepare finds QEMU and its files and measures what a start needs to know
// of this host. Calling it early, beside other work, takes its time, 15 ms where
// nothing is remembered, out of the first start.
func (d *Driver) Prepare() error {
	d.once.Do(func() {
		known := recall(d.Cache)
		clock := known
		measured := make(chan int, 1)
		go func() { measured <- clock.tsc() }()
		found := known
		d.install, d.err = find(d.Path, &found)
		d.tscKHz = <-measured
		found.Boot, found.TSCKHz = clock.Boot, clock.TSCKHz
		if d.err == nil && found != known {
			found.keep(d.Cache)
		}
	})
	return d.err
}

// Installation returns the QEMU that the driver uses.
func (d *Driver) Installation() (*Installation, error) {
	if err := d.Prepare(); err != nil {
		return nil, err
	}
	return d.install, nil
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, c vmm.Config) (vmm.VM, error) {
	begun := time.Now()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := checkPaths(&c); err != nil {
		return nil, err
	}
	if err := d.Prepare(); err != nil {
		return nil, err
	}
	if c.Accel == "" {
		c.Accel = vmm.AccelTCG
	}
	v := &machine{begun: begun, done: make(chan struct{}), listening: make(chan struct{}), running: make(chan struct{})}
	v.grown.turn = make(chan struct{}, 1)
	v.grown.turn <- struct{}{}
	if c.NIC != nil && c.NIC.File() == nil {
		// What the guest sends fills a buffer that nobody empties.
		conn, theirs, err := pair()
		if err != nil {
			return nil, errors.Join(err, v.release())
		}
		defer theirs.Close()
		v.conns = append(v.conns, conn)
		c.NIC = &vmm.NIC{MAC: c.NIC.MAC, Conn: theirs}
	}
	if c.Saved != nil {
		err := v.resume(ctx, d.install, c)
		switch {
		case err == nil:
			return v, nil
		case v.process == nil:
			return nil, errors.Join(err, v.release())
		default:
			return nil, errors.Join(err, v.Kill())
		}
	}
	if c.Frozen != nil {
		// An attempt before may have read it.
		if _, err := c.Frozen.State.Seek(0, io.SeekStart); err != nil {
			return nil, fmt.Errorf("%w: read the state of the frozen machine: %w", vmm.ErrConfig, err)
		}
	}
	var tpm *os.File
	if c.Firmware != "" {
		if c.RunDir == "" {
			return nil, errors.Join(fmt.Errorf("%w: a measured machine needs a directory for its TPM", vmm.ErrConfig), v.release())
		}
		var err error
		if v.tpm, tpm, err = startTPM(c.RunDir); err != nil {
			return nil, errors.Join(err, v.release())
		}
		defer tpm.Close()
	}
	args, files, err := arguments(&c, d.install, d.tscKHz, tpm)
	if err != nil {
		v.release()
		return nil, err
	}
	v.config, v.args = c, args
	for _, d := range c.Disks {
		if err := v.holds(d.Serial, d.File); err != nil {
			v.release()
			return nil, err
		}
	}
	if c.NIC != nil {
		v.nic = fdFree + slices.Index(files, c.NIC.File())
	}
	v.mark("prepare")
	if err := v.spawn(d.install, files); err != nil {
		v.release()
		return nil, err
	}
	if err := v.greet(ctx); err != nil {
		return nil, errors.Join(err, v.Kill())
	}
	return v, nil
}

// checkPaths says of a missing file which one it is; inside the jail's
// set-up it would be the failure of a mount. It makes paths absolute.
func checkPaths(c *vmm.Config) error {
	for what, path := range map[string]*string{"kernel": &c.Kernel, "initial file system": &c.Initrd, "firmware": &c.Firmware, "memory": &c.MemoryFile} {
		if *path == "" || c.Frozen != nil || c.Saved != nil {
			continue
		}
		info, err := os.Stat(*path)
		if err == nil {
			*path, err = filepath.Abs(*path)
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", vmm.ErrConfig, what, err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%w: %s %s is not a file", vmm.ErrConfig, what, *path)
		}
	}
	if c.Unjailed && (c.Frozen != nil || c.MemoryFile != "") {
		return fmt.Errorf("%w: a machine is frozen and cloned inside the jail only", vmm.ErrConfig)
	}
	if c.Unjailed && len(c.Shares) > 0 {
		return fmt.Errorf("%w: shares are mounted inside the jail, so there are none without it", vmm.ErrConfig)
	}
	for _, s := range c.Shares {
		for _, e := range s.Entries {
			if err := exists(e); err != nil {
				return fmt.Errorf("%w: share %s: %w", vmm.ErrConfig, s.Tag, err)
			}
		}
	}
	return nil
}

// Cmdline is the kernel's command line of a machine, as it is measured where firmware does that.
func (d *Driver) Cmdline(c vmm.Config) (string, error) {
	if err := d.Prepare(); err != nil {
		return "", err
	}
	return cmdline(&c, d.tscKHz), nil
}

// exists checks that what an entry names is there and is what it says.
func exists(e vmm.ShareEntry) error {
	info, err := os.Stat(e.HostPath)
	switch {
	case err != nil:
		return err
	case e.File && info.IsDir():
		return fmt.Errorf("%s is a directory", e.HostPath)
	case !e.File && !info.IsDir():
		return fmt.Errorf("%s is not a directory", e.HostPath)
	}
	return nil
}

// pair makes a stream socket pair: our end as a connection, QEMU's as a file.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socketpair")
	ours := os.NewFile(uintptr(fds[0]), "socketpair")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// maxLines is how many of QEMU's messages an error quotes; the first ones say
// what was wrong.
const maxLines = 4

// readable turns QEMU's messages into one line: without its own name
// in front of each, and without control characters.
func readable(stderr []byte) string {
	var lines []string
	for line := range strings.SplitSeq(string(stderr), "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), binary+": ")
		switch {
		case line == "":
		case len(lines) == maxLines:
			return strings.Join(lines, "; ") + "; ..."
		default:
			lines = append(lines, printable(line))
		}
	}
	return strings.Join(lines, "; ")
}
