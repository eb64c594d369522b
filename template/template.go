// Package template keeps virtual machines that were booted once, up to the moment before
// the agent's first request, and frozen: every sandbox goes on from a copy instead of
// booting. A copy shares the memory's pages until it writes to them.
//
// A template belongs to what shaped it: kernel, initial file system, QEMU, machine, processor,
// accelerator, memory and number of processors. Whatever of that changes makes another one. It
// is built by whom it is needed first, while all others wait for that one. What it holds is
// the same for everyone and nothing secret: no container was in it, and the agent makes a
// clone unique before anything of the user's runs in it.
//
// The package knows no sandbox and no particular monitor.
package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/image/lockfile"
	"manis/template/draft"
	"manis/vmm"
)

// Driver starts the machines. It says of a configuration by which key its template is
// found, and of which files it is made.
type Driver interface {
	vmm.Driver
	Fingerprint(vmm.Config) (key string, inputs map[string]string, err error)
}

// ErrNotFound: there is no such template.
var ErrNotFound = errors.New("no such template")

// ErrInUse: machines run that share the template's memory.
var ErrInUse = errors.New("template is in use")

// bootTime bounds one attempt to boot a template, settleTime is how long its agent gets to
// become idle after it has opened its port.
const (
	bootTime     = 30 * time.Second
	bootAttempts = 2
	settleTime   = 100 * time.Millisecond
)

// The files of a template.
const (
	memoryName = "memory"
	stateName  = "state"
	infoName   = "template.json"
	// verifiedName holds the seal of files whose digests were right.
	verifiedName = "verified"
)

// Info describes a template.
type Info struct {
	// Key is its name.
	Key     string    `json:"key"`
	Created time.Time `json:"created"`
	// MemoryBytes and VCPUs are the size of its machines.
	MemoryBytes uint64    `json:"memory_bytes"`
	VCPUs       int       `json:"vcpus"`
	Accel       vmm.Accel `json:"accel"`
	// Inputs are the files it was made of and what identified their content then.
	Inputs map[string]string `json:"inputs"`
	// BuildTime is how long it took to boot and freeze.
	BuildTime time.Duration `json:"build_ns"`
	// Digests of the memory and the state, "sha256:...".
	MemoryDigest string `json:"memory_digest"`
	StateDigest  string `json:"state_digest"`
}

// Template is a template that is ready for clones. While it is open it is not removed.
type Template struct {
	Info Info
	// Built is set when it was made just now.
	Built  bool
	memory *os.File
	state  *os.File
	saved  *Machine
	// savedErr is why there is none.
	savedErr error
}

// Frozen is what a clone starts from. The state's file is the template's, and only one
// machine may be started from it.
func (t *Template) Frozen() *vmm.Frozen { return &vmm.Frozen{Memory: t.memory.Name(), State: t.state} }

// Close gives the template back, after the end of the machine that was started from it.
func (t *Template) Close() {
	if t != nil {
		t.memory.Close()
		t.state.Close()
		t.saved.Close()
	}
}

// Relinquish lets others remove the template although it is open: for work that nobody
// waits for. What is open stays.
func (t *Template) Relinquish() { unix.Flock(int(t.memory.Fd()), unix.LOCK_UN) }

// Store is a directory of templates. It may be used by any number of processes.
type Store struct {
	dir    string
	driver Driver
}

// Open returns the store in dir, which is made on first use.
func Open(dir string, driver Driver) *Store { return &Store{dir, driver} }

// Get returns the template for machines like c, and builds it if there is none or
// if it is damaged; building is told once by announce, if that is not nil. Only what
// shapes a machine counts of c: the content of its slots does not. A tap device of c is lent to
// the machine that is built: its kernel sends nothing.
func (s *Store) Get(ctx context.Context, c vmm.Config, announce func()) (*Template, error) {
	key, inputs, err := s.driver.Fingerprint(c)
	if err != nil {
		return nil, err
	}
	t, err := s.open(key)
	if err == nil {
		return t, nil
	}
	if err := s.make(); err != nil {
		return nil, err
	}
	lock, err := lockfile.Acquire(ctx, filepath.Join(s.dir, "."+key+".lock"), lockfile.Exclusive, true)
	if err != nil {
		return nil, fmt.Errorf("build template: %w", err)
	}
	defer lock.Release()
	// Somebody else may have built it meanwhile.
	if t, err := s.open(key); err == nil {
		return t, nil
	}
	if announce != nil {
		announce()
	}
	if err := s.build(ctx, key, inputs, c); err != nil {
		return nil, fmt.Errorf("build template: %w", err)
	}
	s.sweep()
	if t, err = s.open(key); err != nil {
		return nil, fmt.Errorf("open the template that was just built: %w", err)
	}
	t.Built = true
	return t, nil
}

// Has reports whether Get would find a template instead of building it.
func (s *Store) Has(c vmm.Config) bool {
	key, _, err := s.driver.Fingerprint(c)
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(s.dir, key, infoName))
	return err == nil
}

func (s *Store) make() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of templates: %w", err)
	}
	return nil
}

// private refuses a directory that others may write to: who changes a template rules
// every machine.
func private(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return fmt.Errorf("%s is not a directory of this user's alone (chmod 700, or remove it)", dir)
	}
	return nil
}

// open opens a template that is whole.
func (s *Store) open(key string) (*Template, error) {
	dir := filepath.Join(s.dir, key)
	if err := private(dir); err != nil {
		return nil, err
	}
	info, err := readInfo(dir)
	if err != nil {
		return nil, err
	}
	t := &Template{Info: *info}
	if t.memory, err = os.Open(filepath.Join(dir, memoryName)); err != nil {
		return nil, err
	}
	if t.state, err = os.Open(filepath.Join(dir, stateName)); err != nil {
		t.memory.Close()
		return nil, err
	}
	if err := t.check(dir); err != nil {
		t.Close()
		return nil, err
	}
	// Removal takes it exclusively.
	if err := unix.Flock(int(t.memory.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Close()
		return nil, fmt.Errorf("use template: %w", err)
	}
	t.saved, t.savedErr = OpenSaved(filepath.Join(dir, savedName)) // without, it is made anew
	now := time.Now()
	os.Chtimes(filepath.Join(dir, infoName), now, now) // when it was last used
	return t, nil
}

func readInfo(dir string) (*Info, error) {
	b, err := os.ReadFile(filepath.Join(dir, infoName))
	if err != nil {
		return nil, err
	}
	var info Info
	if err := json.Unmarshal(b, &info); err != nil {
		return nil, fmt.Errorf("read %s of a template: %w", infoName, err)
	}
	if info.Key != filepath.Base(dir) {
		return nil, fmt.Errorf("template %s says that it is %s", filepath.Base(dir), info.Key)
	}
	return &info, nil
}

// check verifies the digests.
func (t *Template) check(dir string) error {
	err := verify(filepath.Join(dir, verifiedName), sealed{t.memory, t.Info.MemoryDigest}, sealed{t.state, t.Info.StateDigest})
	if err != nil {
		return fmt.Errorf("template %s: %w", t.Info.Key, err)
	}
	return nil
}

// build boots a machine and freezes it, aside, and puts the result in place at once. The
// lock of the key is held.
func (s *Store) build(ctx context.Context, key string, inputs map[string]string, c vmm.Config) (err error) {
	begun := time.Now()
	d, err := draft.New(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	tmp := d.Dir
	memoryPath, statePath := filepath.Join(tmp, memoryName), filepath.Join(tmp, stateName)
	timeout := bootTime
	for attempt := 1; ; attempt++ {
		err := s.freeze(ctx, c, memoryPath, statePath, timeout)
		if err == nil {
			break
		}
		// An emulated machine may hang in the calibration of its timers while the host
		// is busy.
		if attempt == bootAttempts || ctx.Err() != nil || !errors.Is(err, errHung) {
			return err
		}
		timeout *= 2
	}
	info := Info{Key: key, Created: time.Now(), MemoryBytes: c.MemoryBytes, VCPUs: max(c.VCPUs, 1), Accel: c.Accel, Inputs: inputs}
	for path, sum := range map[string]*string{memoryPath: &info.MemoryDigest, statePath: &info.StateDigest} {
		if err := os.Chmod(path, 0o400); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		*sum, err = digest(f)
		f.Close()
		if err != nil {
			return err
		}
	}
	info.BuildTime = time.Since(begun)
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, infoName), b, 0o600); err != nil {
		return err
	}
	// A damaged predecessor is in the way; its clones keep its files.
	dir := filepath.Join(s.dir, key)
	if err := os.Rename(dir, tmp+"-old"); err == nil {
		defer os.RemoveAll(tmp + "-old")
	}
	return os.Rename(tmp, dir)
}

// errHung marks a machine that did not become ready in time.
var errHung = errors.New("the guest's agent does not become ready")

func (s *Store) freeze(ctx context.Context, c vmm.Config, memoryPath, statePath string, timeout time.Duration) (err error) {
	memory, err := os.OpenFile(memoryPath, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer memory.Close()
	// QEMU runs as another user; the directory is this user's alone.
	if err := memory.Chmod(0o666); err != nil {
		return err
	}
	if err := memory.Truncate(int64(c.MemoryBytes)); err != nil {
		return err
	}
	state, err := os.OpenFile(statePath, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer state.Close()
	c.MemoryFile, c.Frozen = memoryPath, nil
	c.Disks = slices.Clone(c.Disks)
	for i := range c.Disks {
		c.Disks[i].File = nil
	}
	c.Shares = slices.Clone(c.Shares)
	for i := range c.Shares {
		c.Shares[i].Entries = nil
	}
	if c.NIC != nil {
		c.NIC = &vmm.NIC{MAC: c.NIC.MAC, Tap: c.NIC.Tap}
	}
	// In the directory that is removed in any case.
	c.RunDir = filepath.Join(filepath.Dir(memoryPath), "run")
	if err := os.Mkdir(c.RunDir, 0o700); err != nil {
		return err
	}
	defer os.Remove(c.RunDir)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errHung)
	defer cancel()
	v, err := s.driver.Start(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Kill()) }()
	select {
	case <-v.Listening():
	case <-v.Done():
		return fmt.Errorf("the machine ended: %s", v.Exit().Detail)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-time.After(settleTime):
	case <-v.Done():
		return fmt.Errorf("the machine ended: %s", v.Exit().Detail)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return v.Freeze(ctx, state)
}

// List returns the templates, the last used first.
func (s *Store) List() ([]Info, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var all []Info
	used := map[string]time.Time{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		dir := filepath.Join(s.dir, e.Name())
		info, err := readInfo(dir)
		if err != nil {
			continue
		}
		used[info.Key] = lastUse(dir)
		all = append(all, *info)
	}
	slices.SortFunc(all, func(a, b Info) int { return used[b.Key].Compare(used[a.Key]) })
	return all, nil
}

// LastUse is when the template was last opened; Bytes is what it takes of the disk.
func (s *Store) LastUse(key string) time.Time { return lastUse(filepath.Join(s.dir, key)) }

// Bytes is what a template takes of the disk.
func (s *Store) Bytes(key string) int64 {
	var sum int64
	for _, name := range []string{memoryName, stateName, infoName, savedName + "/" + pagesName, savedName + "/" + resumerName} {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(s.dir, key, name), &st) == nil {
			sum += st.Blocks * 512
		}
	}
	return sum
}

func lastUse(dir string) time.Time {
	st, err := os.Stat(filepath.Join(dir, infoName))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// Find returns the template whose key begins with prefix.
func (s *Store) Find(prefix string) (Info, error) {
	all, err := s.List()
	if err != nil {
		return Info{}, err
	}
	var found []Info
	for _, i := range all {
		if strings.HasPrefix(i.Key, prefix) {
			found = append(found, i)
		}
	}
	switch {
	case prefix == "" || len(found) == 0:
		return Info{}, fmt.Errorf("%w: %s", ErrNotFound, prefix)
	case len(found) > 1:
		return Info{}, fmt.Errorf("%s is the beginning of %d templates: give more of it", prefix, len(found))
	}
	return found[0], nil
}

// Remove deletes a template that no machine uses.
func (s *Store) Remove(key string) error {
	dir := filepath.Join(s.dir, key)
	memory, err := os.Open(filepath.Join(dir, memoryName))
	if err == nil {
		defer memory.Close()
		err = unix.Flock(int(memory.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("remove template %.12s: %w (manis ps shows the running containers)", key, ErrInUse)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove template %.12s: %w", key, err)
	}
	gone := draft.Gone(s.dir, key)
	os.RemoveAll(gone)
	if err := os.Rename(dir, gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %.12s", ErrNotFound, key)
		}
		return fmt.Errorf("remove template %.12s: %w", key, err)
	}
	os.Remove(filepath.Join(s.dir, "."+key+".lock"))
	os.Remove(filepath.Join(s.dir, "."+key+".saving"))
	return os.RemoveAll(gone)
}

// unusedTime is after how long without use a template goes when another one is built.
const unusedTime = 14 * 24 * time.Hour

// sweep removes what is of no more use: templates made of files that have changed, those
// not used for long, and the rests of builds that were killed.
func (s *Store) sweep() {
	all, err := s.List()
	if err != nil {
		return
	}
	for _, i := range all {
		if time.Since(s.LastUse(i.Key)) > unusedTime || !s.current(i) {
			s.Remove(i.Key)
		}
	}
	draft.Sweep(s.dir)
}

// current reports whether a machine could still have this template.
func (s *Store) current(i Info) bool {
	identifier, ok := s.driver.(interface{ Identify(path string) string })
	if !ok {
		return true
	}
	for path, id := range i.Inputs {
		if identifier.Identify(path) != id {
			return false
		}
	}
	return true
}
