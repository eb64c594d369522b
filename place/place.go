// Package place knows where Manis keeps things on the host: containers, images and
// volumes, the sockets of running containers, caches, and the guest image that
// comes with the binary. Every process of one installation derives the same places
// from the same environment. It knows nothing of what is kept there.
package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Environment variables that move the places. A front end that was given flags
// instead sets these for its children: see Places.Environ.
const (
	RootVariable   = "MANIS_ROOT"
	RunVariable    = "MANIS_RUN"
	GuestVariable  = "MANIS_GUEST"
	ConfigVariable = "MANIS_CONFIG"
)

// maxRun is the longest run directory: a unix socket's address holds 107 bytes,
// and a container's adds "/" + 16 + "/control".
const maxRun = 107 - 1 - 16 - len("/control")

// Places is one installation's directories, all absolute. Find fills it; nothing
// exists before Make.
type Places struct {
	// Root holds what outlives a reboot.
	Root string
	// Run holds sockets; it may be emptied at boot. Mode 0700, ours.
	Run string
	// Cache holds what can be computed again.
	Cache string
	// Config holds files that the user writes. It need not exist.
	Config string

	policy string
}

// Find derives the places from, in this order, the arguments (the flags --root and
// --run-root; "" when not given), the environment, and the defaults for root
// or for an ordinary user.
func Find(root, run string) (*Places, error) {
	p := &Places{
		Root: first(root, os.Getenv(RootVariable)),
		Run:  first(run, os.Getenv(RunVariable)),
	}
	uid := os.Geteuid()
	lender, borrowed := borrowed()
	system := uid == 0 && !borrowed
	home := func(parts ...string) (string, error) {
		h, err := os.UserHomeDir()
		if err != nil && borrowed {
			// Podman leaves HOME out of some calls.
			var u *user.User
			if u, err = user.LookupId(lender); err == nil {
				h = u.HomeDir
			}
		}
		if err != nil {
			return "", fmt.Errorf("find manis's directories: %w (set HOME, or %s)", err, RootVariable)
		}
		return filepath.Join(append([]string{h}, parts...)...), nil
	}
	var err error
	if p.Root == "" {
		switch data := os.Getenv("XDG_DATA_HOME"); {
		case system:
			p.Root = "/var/lib/manis"
		case filepath.IsAbs(data):
			p.Root = filepath.Join(data, "manis")
		default:
			if p.Root, err = home(".local", "share", "manis"); err != nil {
				return nil, err
			}
		}
	}
	if p.Run == "" {
		switch runtime := os.Getenv("XDG_RUNTIME_DIR"); {
		case system:
			p.Run = "/run/manis"
		case filepath.IsAbs(runtime) && owned(runtime, uid) == nil:
			p.Run = filepath.Join(runtime, "manis")
		default:
			// Some sessions have no runtime directory (su, cron). The name is
			// guessable, so Make insists that it is ours.
			p.Run = filepath.Join("/tmp", "manis-"+strconv.Itoa(uid))
		}
	}
	switch cache := os.Getenv("XDG_CACHE_HOME"); {
	case filepath.IsAbs(cache):
		p.Cache = filepath.Join(cache, "manis")
	case system:
		p.Cache = "/var/cache/manis"
	default:
		if p.Cache, err = home(".cache", "manis"); err != nil {
			// Not worth failing for: caches can live with the data.
			p.Cache = filepath.Join(p.Root, "cache")
		}
	}
	switch config := os.Getenv("XDG_CONFIG_HOME"); {
	case os.Getenv(ConfigVariable) != "":
		p.Config = os.Getenv(ConfigVariable)
	case filepath.IsAbs(config):
		p.Config = filepath.Join(config, "manis")
	case system:
		p.Config = "/etc/manis"
	default:
		if p.Config, err = home(".config", "manis"); err != nil {
			p.Config = "/etc/manis"
		}
	}
	p.policy = filepath.Join(p.Config, policyName)
	if system && os.Getenv(ConfigVariable) == "" {
		// What root's processes may do does not hang on whose session started them.
		p.policy = filepath.Join("/etc/manis", policyName)
	}
	for _, dir := range []*string{&p.Root, &p.Run, &p.Cache, &p.Config, &p.policy} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, fmt.Errorf("find manis's directories: %w", err)
		}
	}
	if len(p.Run) > maxRun {
		return nil, fmt.Errorf("run directory %s: longer than %d bytes, too long for the sockets in it (choose another with --run-root or %s)", p.Run, maxRun, RunVariable)
	}
	return p, nil
}

// borrowed reports whether this root is an ordinary user's, and whose: root of a user namespace with
// that user's runtime directory, as rootless Podman makes it. Its places are the user's.
func borrowed() (lender string, is bool) {
	b, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(b))
	if err != nil || os.Geteuid() != 0 || len(fields) < 3 || fields[0] != "0" || fields[1] == "0" {
		return "", false
	}
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	return fields[1], filepath.IsAbs(runtime) && owned(runtime, 0) == nil
}

// Make creates Root and Run where they are missing, and refuses a run directory
// that another user could have prepared.
func (p *Places) Make() error {
	if err := os.MkdirAll(p.Root, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w (choose another with --root or %s)", err, RootVariable)
	}
	if err := os.MkdirAll(filepath.Dir(p.Run), 0o755); err != nil {
		return fmt.Errorf("make run directory: %w (choose another with --run-root or %s)", err, RunVariable)
	}
	if err := os.Mkdir(p.Run, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make run directory: %w (choose another with --run-root or %s)", err, RunVariable)
	}
	if err := owned(p.Run, os.Geteuid()); err != nil {
		return fmt.Errorf("run directory %s: %w (choose another with --run-root or %s)", p.Run, err, RunVariable)
	}
	return nil
}

// owned checks that a directory is one, belongs to uid, and lets nobody else write.
func owned(dir string, uid int) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errors.New("not a directory")
	case int(st.Uid) != uid:
		return fmt.Errorf("belongs to user %d, not to %d", st.Uid, uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("others may write to it (mode %04o)", st.Mode&0o7777)
	}
	return nil
}

// Containers, Images and Volumes are the directories of the three stores.
func (p *Places) Containers() string { return filepath.Join(p.Root, "containers") }
func (p *Places) Images() string     { return filepath.Join(p.Root, "images") }
func (p *Places) Volumes() string    { return filepath.Join(p.Root, "volumes") }
func (p *Places) Snapshots() string  { return filepath.Join(p.Root, "snapshots") }

// Audit is where the audit bundles of confidential pods are.
func (p *Places) Audit() string { return filepath.Join(p.Root, "audit") }

// Lower is the directory of images of what lies below the root filesystems of pods.
func (p *Places) Lower() string { return filepath.Join(p.Cache, "lower") }

// Pods is where pods have their sockets, each in a directory of its own.
func (p *Places) Pods() string { return filepath.Join(p.Run, "pods") }

// Pool is where machines that wait for a container have their sockets, named
// TEMPLATE-PID, and each a directory.
func (p *Places) Pool() string { return filepath.Join(p.Run, "pool") }

// PoolSocketName is the name in Run of the socket at which manisd answers.
const PoolSocketName = "manisd.sock"

// PoolSocket is where manisd answers.
func (p *Places) PoolSocket() string { return filepath.Join(p.Run, PoolSocketName) }

// StandbyDir is the name in Pool of the directory of a waiting machine's process.
func StandbyDir(pid int) string { return fmt.Sprintf(".run-%d", pid) }

// PoolSettings is the file that says which machines manisd keeps.
func (p *Places) PoolSettings() string { return filepath.Join(p.Config, "manisd.json") }

// policyName is the file of the operator's policy in its directory.
const policyName = "policy.yaml"

// Policy is the file that says what may be started: root's is in /etc/manis, unless ConfigVariable moves it.
func (p *Places) Policy() string { return p.policy }

// Registries is the file that says how to reach image registries.
func (p *Places) Registries() string { return filepath.Join(p.Config, "registries.json") }

// Environ returns the assignments by which a child process finds the same places.
func (p *Places) Environ() []string {
	return []string{RootVariable + "=" + p.Root, RunVariable + "=" + p.Run}
}

// Guest is the guest image: what a VM boots.
type Guest struct {
	Dir       string
	Kernel    string // Dir/vmlinuz
	Initramfs string // Dir/initramfs
}

// Measured is what of the guest a machine of the class confidential boots: the kernel as an EFI program, and the initial file
// system with the agent that has a guard.
func (g *Guest) Measured() (kernel, initramfs string, err error) {
	kernel, initramfs = filepath.Join(g.Dir, "bzImage"), filepath.Join(g.Dir, "initramfs-confidential")
	for _, path := range []string{kernel, initramfs} {
		if !regular(path) {
			return "", "", fmt.Errorf("find the guest image of the class confidential: there is no file %s (build it with make build)", path)
		}
	}
	return kernel, initramfs, nil
}

// firmware are the places of UEFI firmware that measures, as distributions install it.
var firmware = []string{"/usr/share/ovmf/OVMF.fd", "/usr/share/edk2/x64/OVMF.4m.fd", "/usr/share/edk2/ovmf/OVMF.fd"}

// FindFirmware looks for UEFI firmware that measures what it boots.
func FindFirmware() (string, error) {
	for _, path := range firmware {
		if regular(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("find UEFI firmware: there is none in %v (install the package ovmf)", firmware)
}

// FindGuest looks for the guest image: where MANIS_GUEST says, or, beside this
// executable, where make build or make install put it.
func FindGuest() (*Guest, error) {
	if dir := os.Getenv(GuestVariable); dir != "" {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("find the guest image: %w", err)
		}
		return guestIn([]string{dir})
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the guest image: %w (set %s)", err, GuestVariable)
	}
	return FindGuestOf(exe)
}

// FindGuestOf returns the guest image that an executable would find beside itself.
func FindGuestOf(exe string) (*Guest, error) {
	// A link in ~/bin leads to the installation.
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	return guestIn(guestDirs(exe))
}

// guestDirs are the directories that may hold the guest image of an executable.
func guestDirs(exe string) []string {
	prefix := filepath.Dir(filepath.Dir(exe))
	return []string{
		filepath.Join(prefix, "guest", "image"),
		filepath.Join(prefix, "lib", "manis"),
		filepath.Join(prefix, "share", "manis"),
	}
}

func guestIn(dirs []string) (*Guest, error) {
	for _, dir := range dirs {
		g := &Guest{Dir: dir, Kernel: filepath.Join(dir, "vmlinuz"), Initramfs: filepath.Join(dir, "initramfs")}
		if regular(g.Kernel) && regular(g.Initramfs) {
			return g, nil
		}
	}
	return nil, fmt.Errorf("find the guest image: no vmlinuz and initramfs in %v (build them with make build, or set %s)", dirs, GuestVariable)
}

func regular(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
