package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a Store returns, wrapped with the name in question.
var (
	ErrNotFound  = errors.New("no such container")
	ErrNameInUse = errors.New("name is already in use")
	ErrAmbiguous = errors.New("more than one container matches")
	// ErrRunning: the operation needs a container that does not run.
	ErrRunning = errors.New("container is running")
	// ErrBusy: the container does not run, but its files are being copied.
	ErrBusy = errors.New("container is busy")
	ErrName = errors.New("invalid container name")
)

// Store is a directory of containers. It holds no state in memory: any number
// of processes may use it at once. Layout:
//
//	ID/config.json   Config, replaced as a whole
//	ID/state.json    State, replaced as a whole, written by the lock's holder
//	ID/lock          held by the monitor for its life, or while files are copied
//	ID/...           the monitor's files: logs, scratch disk
//	lock             flock held while names are given or taken
type Store struct {
	dir string
	run string
}

// Open returns the store in dir, with control sockets below run; both are made.
func Open(dir, run string) (*Store, error) {
	for _, d := range []string{dir, run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open container store: %w", err)
		}
	}
	return &Store{dir: dir, run: run}, nil
}

// Container is a handle on one container's directory.
type Container struct {
	store *Store
	ID    string
}

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// NewID returns a fresh container id.
func NewID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Create writes a new container. cfg.ID is set if empty; cfg.Name must be free.
func (s *Store) Create(cfg *Config) (*Container, error) {
	if !namePattern.MatchString(cfg.Name) {
		return nil, fmt.Errorf("%w %q: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed", ErrName, cfg.Name)
	}
	if cfg.ID == "" {
		cfg.ID = NewID()
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.nameFree(cfg.Name, ""); err != nil {
		return nil, err
	}
	// Made aside and renamed: a container is there as a whole or not at all.
	tmp, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := writeJSON(filepath.Join(tmp, "config.json"), cfg); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if err := writeJSON(filepath.Join(tmp, "state.json"), &State{Status: Created}); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	// Made here and never by Lock, which could make it anew in a directory that is
	// being removed.
	if err := os.WriteFile(filepath.Join(tmp, lockName), nil, 0o600); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, cfg.ID)); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	return &Container{store: s, ID: cfg.ID}, nil
}

func (s *Store) nameFree(name, except string) error {
	all, err := s.List()
	if err != nil {
		return err
	}
	for _, c := range all {
		cfg, err := c.Config()
		if err == nil && cfg.Name == name && c.ID != except {
			return fmt.Errorf("container name %q: %w by container %s: remove or rename that container to reuse the name", name, ErrNameInUse, c.ID[:12])
		}
	}
	return nil
}

// List returns every container, newest first.
func (s *Store) List() ([]*Container, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	type dated struct {
		c       *Container
		created int64
	}
	var found []dated
	for _, e := range entries {
		if !e.IsDir() || !isID(e.Name()) {
			continue
		}
		c := &Container{store: s, ID: e.Name()}
		cfg, err := c.Config()
		if err != nil {
			continue // being removed
		}
		found = append(found, dated{c, cfg.Created.UnixNano()})
	}
	slices.SortFunc(found, func(a, b dated) int {
		switch {
		case a.created > b.created:
			return -1
		case a.created < b.created:
			return 1
		}
		return strings.Compare(a.c.ID, b.c.ID)
	})
	list := make([]*Container, len(found))
	for i, f := range found {
		list[i] = f.c
	}
	return list, nil
}

func isID(s string) bool {
	if len(s) != 64 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// Get finds a container by its name, its id, or an unambiguous beginning of
// its id.
func (s *Store) Get(ref string) (*Container, error) {
	name := strings.TrimPrefix(ref, "/")
	if name == "" {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, ref)
	}
	if isID(name) {
		c := &Container{store: s, ID: name}
		if _, err := c.Config(); err == nil {
			return c, nil
		}
	}
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var byPrefix []*Container
	for _, c := range all {
		if cfg, err := c.Config(); err == nil && cfg.Name == name {
			return c, nil
		}
		if strings.HasPrefix(c.ID, name) {
			byPrefix = append(byPrefix, c)
		}
	}
	switch len(byPrefix) {
	case 0:
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ref)
	case 1:
		return byPrefix[0], nil
	}
	return nil, fmt.Errorf("%w id %s", ErrAmbiguous, ref)
}

// Dir is the container's directory, for its monitor.
func (c *Container) Dir() string { return filepath.Join(c.store.dir, c.ID) }

// RunDir is the container's directory for sockets, on a filesystem that is
// emptied at boot. The path is short: a unix socket's address holds 107 bytes.
func (c *Container) RunDir() string { return filepath.Join(c.store.run, c.ID[:16]) }

// Socket is the address of the monitor's control socket.
func (c *Container) Socket() string { return filepath.Join(c.RunDir(), "control") }

// CopyDir is what RunDir is, for a monitor that only copies files: what a killed one leaves
// there says nothing about the container.
func (c *Container) CopyDir() string { return c.RunDir() + ".cp" }

// CopySocket is the address of the control socket of a monitor that only copies files.
func (c *Container) CopySocket() string { return filepath.Join(c.CopyDir(), "control") }

// Config reads the configuration.
func (c *Container) Config() (*Config, error) {
	cfg := new(Config)
	if err := readJSON(filepath.Join(c.Dir(), "config.json"), cfg); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, c.ID[:12])
		}
		return nil, fmt.Errorf("read configuration of container %s: %w", c.ID[:12], err)
	}
	return cfg, nil
}

// SetConfig replaces the configuration; a new name must be free.
func (c *Container) SetConfig(cfg *Config) error {
	if !namePattern.MatchString(cfg.Name) {
		return fmt.Errorf("%w %q: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed", ErrName, cfg.Name)
	}
	unlock, err := c.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.store.nameFree(cfg.Name, c.ID); err != nil {
		return err
	}
	return writeJSON(filepath.Join(c.Dir(), "config.json"), cfg)
}

// State reads the state and corrects it: a container that says it runs but
// has no monitor is dead, and its VM is gone with the monitor.
func (c *Container) State() (*State, error) {
	s, err := c.readState()
	if err != nil {
		return nil, err
	}
	if !s.Status.Live() {
		return s, nil
	}
	if c.Monitored() {
		return s, nil
	}
	// The monitor may have ended, properly, between the two looks.
	if s, err = c.readState(); err != nil || !s.Status.Live() {
		return s, err
	}
	s.Status = Dead
	s.MonitorPID, s.VMPID = 0, 0
	s.ExitCode = 137
	s.Ports = nil
	s.Error = "its monitor was killed, and the VM with it"
	if fi, err := os.Stat(filepath.Join(c.Dir(), "state.json")); err == nil && s.FinishedAt.Before(s.StartedAt) {
		s.FinishedAt = fi.ModTime()
	}
	return s, nil
}

// Live reports whether a container in this status has a monitor.
func (s Status) Live() bool { return s == Running || s == Paused || s == Restarting }

func (c *Container) readState() (*State, error) {
	s := new(State)
	if err := readJSON(filepath.Join(c.Dir(), "state.json"), s); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, c.ID[:12])
		}
		return nil, fmt.Errorf("read state of container %s: %w", c.ID[:12], err)
	}
	return s, nil
}

// SetState replaces the state. Only the holder of the lock calls it.
func (c *Container) SetState(s *State) error {
	if err := writeJSON(filepath.Join(c.Dir(), "state.json"), s); err != nil {
		return fmt.Errorf("write state of container %s: %w", c.ID[:12], err)
	}
	return nil
}

// Lock takes the container for its monitor, or for its removal. It fails
// with ErrRunning when it is taken, with ErrBusy when that is for a copy. The lock ends
// with the file's closing or the process; the file must not be inherited by a child.
//
// It is a lock of an open file description (fcntl), not flock's: whether it is taken
// can be asked without taking it, so who only looks gets in nobody's way.
func (c *Container) Lock() (*os.File, error) { return c.lock(toOwn) }

// LockAfterEnd is Lock, which waits at most limit for a monitor whose container has ended and that has not yet: it holds the lock
// until all of its machine is gone. A container that runs is ErrRunning at once.
func (c *Container) LockAfterEnd(limit time.Duration) (*os.File, error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		f, err := c.Lock()
		if !errors.Is(err, ErrRunning) || time.Now().After(deadline) {
			return f, err
		}
		if st, serr := c.State(); serr != nil || st.Status.Live() {
			return nil, err
		}
	}
}

// LockForCopy takes a container that does not run for as long as files are copied to or
// from it. It fails as Lock does. Nothing else is changed by it: the container's state
// is what it was, and it is not Monitored.
func (c *Container) LockForCopy() (*os.File, error) { return c.lock(toCopy) }

// What a lock is for is told by how much of the file it covers, so that it is known in the
// instant in which the lock is taken, and ends with it: every lock begins at the first
// byte; that of an owner goes on to the end, that for a copy does not.
const (
	toOwn  int64 = 0 // fcntl's "to the end"
	toCopy int64 = 1
)

func (c *Container) lock(purpose int64) (*os.File, error) {
	f, err := os.OpenFile(c.lockPath(), os.O_RDWR, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, c.ID[:12])
		}
		return nil, fmt.Errorf("lock container %s: %w", c.ID[:12], err)
	}
	if err := exclude(f, purpose); err != nil {
		f.Close()
		switch {
		case errors.Is(err, ErrRunning):
			return nil, fmt.Errorf("container %s: %w", c.ID[:12], err)
		case errors.Is(err, ErrBusy):
			return nil, fmt.Errorf("%w: files are being copied to or from %s", err, c.ID[:12])
		}
		return nil, fmt.Errorf("lock container %s: %w", c.ID[:12], err)
	}
	// Removed between opening and locking?
	if _, err := os.Stat(filepath.Join(c.Dir(), "config.json")); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrNotFound, c.ID[:12])
	}
	return f, nil
}

// lockName is the file in a container's directory whose lock its monitor holds.
const lockName = "lock"

func (c *Container) lockPath() string { return filepath.Join(c.Dir(), lockName) }

// exclude takes the lock for writing, or fails with ErrRunning or ErrBusy. Those who have
// waited in AwaitRelease hold it for reading, for an instant: that is waited for.
func exclude(f *os.File, purpose int64) error {
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: purpose})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return err
		}
		holder := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &holder); err != nil {
			return err
		}
		if holder.Type == unix.F_WRLCK {
			if holder.Len == toCopy {
				return ErrBusy
			}
			return ErrRunning
		}
		runtime.Gosched()
	}
}

// Monitored reports whether the container has a monitor, or is being removed.
func (c *Container) Monitored() bool {
	held, purpose := c.holder()
	return held && purpose == toOwn
}

// Held reports whether a process holds the lock, for whatever purpose.
func (c *Container) Held() bool {
	held, _ := c.holder()
	return held
}

// BeingCopied reports whether files are being copied to or from the container while it does
// not run.
func (c *Container) BeingCopied() bool {
	held, purpose := c.holder()
	return held && purpose == toCopy
}

func (c *Container) holder() (held bool, purpose int64) {
	f, err := os.Open(c.lockPath())
	if err != nil {
		return false, 0
	}
	defer f.Close()
	holder := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &holder); err != nil {
		return false, 0
	}
	return holder.Type == unix.F_WRLCK, holder.Len
}

// AwaitRelease waits until nobody holds the lock, which may be taken again at once. A
// container that is gone is not held.
func (c *Container) AwaitRelease(ctx context.Context) error {
	f, err := os.Open(c.lockPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", c.ID[:12], err)
	}
	free := make(chan error, 1)
	go func() {
		// Nothing but the lock itself wakes this up. When the lock never comes, it
		// ends with this process, which is then about to fail.
		for {
			err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_RDLCK})
			if errors.Is(err, unix.EINTR) {
				continue
			}
			f.Close()
			if err != nil {
				err = fmt.Errorf("wait for the lock of container %s: %w", c.ID[:12], err)
			}
			free <- err
			return
		}
	}()
	select {
	case err := <-free:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Remove deletes a container whose lock the caller holds.
func (c *Container) Remove(lock *os.File) error {
	defer lock.Close()
	// Out of sight at once, so that a crash leaves no half of a container.
	gone := filepath.Join(c.store.dir, ".gone-"+c.ID)
	if err := os.Rename(c.Dir(), gone); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID[:12], err)
	}
	os.RemoveAll(c.RunDir())
	os.RemoveAll(c.CopyDir())
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID[:12], err)
	}
	return nil
}

// Sweep deletes what crashed processes left: half-made and half-removed
// containers, and run directories without a container.
func (s *Store) Sweep() error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("sweep containers: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".new-") || strings.HasPrefix(e.Name(), ".gone-") {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return fmt.Errorf("sweep containers: %w", err)
			}
		}
	}
	return nil
}

func (s *Store) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock container store: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock container store: %w", err)
	}
	return func() { f.Close() }, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a file as a whole, or not at all.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = f.Close()
	} else {
		f.Close()
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
