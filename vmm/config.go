package vmm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// Bounds of a Config. A guest below MinMemory has no room for its kernel.
const (
	MinMemory = 64 << 20
	MaxVCPUs  = 128
	// MaxDisks, MaxShares and MaxEntries bound what one VM is started with.
	MaxDisks   = 20
	MaxShares  = 4
	MaxEntries = 128
	// MaxParts bounds the files of a disk of parts.
	MaxParts = 128
	// MaxNICs bounds the network interfaces.
	MaxNICs = 16
)

// Config describes a VM. The zero value of a field is its default, where one
// is named.
type Config struct {
	// Kernel is the path of a Linux kernel image, Initrd of its initial file
	// system; empty is none.
	Kernel, Initrd string
	// Firmware is the path of UEFI firmware that boots Kernel and measures it, with Initrd and Cmdline, into a TPM, which the
	// VM then has. Such a VM has no console and no source of random numbers of the host's. Empty: the driver's
	// own firmware, which measures nothing.
	Firmware string
	// Cmdline holds words that are added to the kernel's command line after the
	// driver's own.
	Cmdline []string
	// MemoryBytes is the guest's RAM, a multiple of 1 MiB.
	MemoryBytes uint64
	// MemoryFile is the path of an empty file that becomes the guest's RAM, so that
	// the VM can be saved by Freeze. Empty: the RAM has no name.
	MemoryFile string
	// Frozen is a saved VM to go on with; Kernel, Initrd and Cmdline are then not used. Everything
	// else that shapes the VM must be as it was when it was saved, in kind and order,
	// see Fingerprint of the driver: only what is behind a disk, a share or the network
	// interface differs. Nil: the VM boots.
	Frozen *Frozen
	// Saved is a monitor's process to continue, instead of a new one that boots or goes on from Frozen;
	// the same holds of what shapes the VM. Nil: there is none.
	Saved *Saved
	// VCPUs is the number of virtual processors; 0 means 1.
	VCPUs int
	// MaxMemoryBytes, a multiple of 1 MiB, and MaxVCPUs are what VM.Grow may reach; where they are no more than MemoryBytes
	// and VCPUs the VM keeps its size.
	MaxMemoryBytes uint64
	MaxVCPUs       int
	// Disks appear in the guest in this order, each found by its serial.
	Disks []Disk
	// Shares are host directories that the guest can mount.
	Shares []Share
	// NIC is the network interface; nil is none. VM.Plug adds others.
	NIC *NIC
	// Accel is resolved by the caller: a driver does not guess. Empty means AccelTCG.
	Accel Accel
	// CodeCache bounds the memory for translated code where the guest is emulated, bytes;
	// 0 is what a start fills. The guest does not see it.
	CodeCache uint64
	// ConsoleLimit is how many of the console's last bytes are kept; 0 means 64 KiB.
	ConsoleLimit int
	// RunDir is an existing directory of the caller in which the driver may
	// make temporary entries, removed by Kill. Empty: the driver makes one.
	RunDir string
	// Cgroup is where the monitor's process is placed; the zero value leaves it
	// with its parent.
	Cgroup Cgroup
	// Unjailed starts the monitor without confinement. It is for debugging and never a default.
	Unjailed bool
}

// Frozen is a VM that Freeze has saved.
type Frozen struct {
	// Memory is the path of the guest's RAM. Its clones share its pages until they write
	// to them, and none can change it.
	Memory string
	// State is all the rest, open for reading at its beginning, by a description of
	// its own for each clone.
	State *os.File
}

// Saved is a VM that Save has saved, with the process of its monitor. It is bound to the boot
// of the host under which that was done.
type Saved struct {
	// Pages and Resumer are the paths of the files that Save has written.
	Pages, Resumer string
	// PagesFile and ResumerFile are what was found at these paths when the content was checked: another
	// file in its place is refused. Nil: whatever is there.
	PagesFile, ResumerFile *os.File `json:"-"`
	// Monitor is the monitor's version.
	Monitor string
	// Disks are the disks that were in their slots, by the descriptor of the monitor's process that
	// refers to them; NIC is that of the network interface. Files with the same content must
	// be in the slots of a VM that goes on from here; slots that were empty may be filled.
	Disks map[int]string
	NIC   int
	// Tap: the network interface's file is a tap device.
	Tap bool
	// Files are what of the shares was open. A VM that goes on from here opens the same again, in
	// the shares' entries of the same names, where all of it must be as it was.
	Files []SavedFile `json:",omitempty"`
}

// SavedFile is a file or directory of a share that was open when the VM was saved.
type SavedFile struct {
	// Share is the tag, Path that of the entry and below it.
	Share, Path string
	Directory   bool `json:",omitempty"`
	// Size is that of a file, bytes.
	Size int64 `json:",omitempty"`
}

// FileError says of an open file of a share why the VM cannot be saved or go on with it.
type FileError struct {
	// Share and Path are as in SavedFile.
	Share, Path, Reason string
}

func (e *FileError) Error() string {
	return fmt.Sprintf("%q of share %s: %s", e.Path, e.Share, e.Reason)
}

// Accel says what executes the guest's code.
type Accel string

const (
	AccelKVM Accel = "kvm"
	AccelTCG Accel = "tcg"
)

// Sync says what a disk's flush does.
type Sync int

const (
	// SyncFlush: writes are cached by the host, a flush of the guest reaches the disk.
	SyncFlush Sync = iota
	// SyncUnsafe ignores flushes, for disks whose content dies with the VM.
	SyncUnsafe
)

// Disk is a raw image attached by virtio-blk.
type Disk struct {
	// Serial is how the guest finds it: 1 to 20 letters, digits, '-', '_' or '.'.
	Serial string
	// File is a regular file or block device opened for what ReadOnly says. Nil is an
	// empty slot: a disk of zeros, for a clone to put its own file into.
	File *os.File
	// Parts, in place of File, are at most MaxParts regular files, opened for reading, that follow each other on a disk
	// which is ReadOnly. Only disks that Attach adds have them.
	Parts    []*os.File
	ReadOnly bool
	Sync     Sync
}

// Share is a 9p export with one directory entry per Entry.
type Share struct {
	// Tag is how the guest names it in mount: 1 to 31 characters as in Serial.
	Tag string
	// MapOwnership keeps owners, modes and device nodes that the guest sets in
	// extended attributes, so that it may chown freely while on the host
	// every file belongs to the VMM's user. Without it they are the host's own, as
	// far as the VMM's user may set them.
	MapOwnership bool
	Entries      []ShareEntry
	// Grows: Share may add entries while the VM runs, so that its monitor has the rights that
	// these could need from the start.
	Grows bool
}

// ShareEntry is one host directory, or file, of a Share.
type ShareEntry struct {
	// Name of the entry at the top of the export, or DIR/NAME in a directory there that holds
	// nothing else: the characters of each as in Serial.
	Name string
	// HostPath is absolute; symbolic links in it are followed at the start.
	HostPath string
	// Opened is what the caller has opened by HostPath, as origin.Open does, and remains the caller's: it is shown, and nothing that has
	// come to its path since. Nil: whatever is there.
	Opened *os.File
	// ReadOnly is enforced by the host, below all mounts in HostPath.
	ReadOnly bool
	// WritableBelow: ReadOnly is for the mount of HostPath itself, those below it stay what they are.
	WritableBelow bool
	// File: HostPath is not a directory.
	File bool
	// Follows: what is mounted or unmounted below HostPath later is so for the VM, too. Only entries that Share adds do.
	Follows bool
	// IDs maps the owners of files; nil: they are what they are on the host. Only entries that Share adds may have it.
	IDs *IDMap
}

// IDMap says which owners the VM sees, and which owners files get on the host that it makes.
type IDMap struct {
	Users, Groups []IDRange
	// Below holds it for what is mounted below HostPath, too.
	Below bool
}

// IDRange is Size ids from Host on, that are those from Seen on in the VM.
type IDRange struct{ Host, Seen, Size uint32 }

// NIC is a virtio network interface.
type NIC struct {
	// MAC is a unicast Ethernet address like 52:54:00:12:34:56.
	MAC string
	// Conn is one end of a stream socket pair. Frames are preceded by their
	// length as 32 bits, big endian. Nil, without a Tap, is an interface that leads nowhere.
	Conn *os.File
	// Tap is a tap device in place of Conn: one that does not block, with IFF_VNET_HDR, so that frames may be larger
	// than the link's MTU and lack checksums where the guest and the device's other side agree. The monitor
	// alone reads and writes it. The guest knows of this as far as the VM has booted so: one that goes on
	// from a frozen one without a tap has whole frames.
	Tap *os.File
}

// File is what carries the frames, or nil.
func (n *NIC) File() *os.File {
	if n.Tap != nil {
		return n.Tap
	}
	return n.Conn
}

// Check says what is wrong with n.
func (n *NIC) Check() error {
	if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return fmt.Errorf("%q is not a unicast Ethernet address", n.MAC)
	}
	if n.Tap != nil && n.Conn != nil {
		return errors.New("a network interface with both a tap and a connection")
	}
	return nil
}

// Cgroup names the control group of the monitor's process and what it may use
// besides the guest's memory.
type Cgroup struct {
	// Path is relative to each hierarchy's root, like "manis/web-1". It is
	// created, and removed at the end. Empty: no group.
	Path string
	// MemoryBytes limits the group; 0 is no limit.
	MemoryBytes uint64
	// PIDs limits the number of threads; 0 is no limit.
	PIDs int64
}

// Check says what is wrong with c, in words for the person who asked for it.
func (c *Config) Check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	switch {
	case c.Kernel == "" && c.Frozen == nil && c.Saved == nil:
		return fail("no kernel")
	case c.Saved != nil && (c.Frozen != nil || c.MemoryFile != "" || c.Unjailed || c.NIC == nil):
		return fail("a saved machine goes on as it was saved: in a jail, with a network interface")
	case c.Frozen != nil && (c.Frozen.Memory == "" || c.Frozen.State == nil || c.MemoryFile != ""):
		return fail("a frozen machine without its memory or state")
	case c.Firmware != "" && (c.Frozen != nil || c.Saved != nil || c.MemoryFile != "" || c.Unjailed || len(c.Shares) > 0):
		return fail("a measured machine boots, in a jail, and has nothing of the host's")
	case c.MemoryBytes < MinMemory:
		return fail("%d MiB of memory are too few, a VM needs at least %d MiB", c.MemoryBytes>>20, MinMemory>>20)
	case c.MemoryBytes%(1<<20) != 0:
		return fail("memory of %d bytes is not a multiple of 1 MiB", c.MemoryBytes)
	case c.MemoryBytes > 1<<40:
		return fail("%d GiB of memory are more than the 1024 GiB that a VM can have", c.MemoryBytes>>30)
	case c.VCPUs < 0 || c.VCPUs > MaxVCPUs:
		return fail("%d processors, a VM has 1 to %d", c.VCPUs, MaxVCPUs)
	case c.MaxMemoryBytes%(1<<20) != 0 || c.MaxMemoryBytes > 1<<40:
		return fail("growth to %d bytes of memory, which is not a multiple of 1 MiB up to 1024 GiB", c.MaxMemoryBytes)
	case c.MaxVCPUs < 0 || c.MaxVCPUs > MaxVCPUs:
		return fail("growth to %d processors, a VM has 1 to %d", c.MaxVCPUs, MaxVCPUs)
	case c.Accel != "" && c.Accel != AccelKVM && c.Accel != AccelTCG:
		return fail("accelerator %q is neither %s nor %s", c.Accel, AccelKVM, AccelTCG)
	case c.ConsoleLimit < 0:
		return fail("negative console limit")
	case len(c.Disks) > MaxDisks:
		return fail("%d disks, a VM starts with at most %d", len(c.Disks), MaxDisks)
	case c.Saved != nil && (c.NIC.Tap != nil) != c.Saved.Tap:
		return fail("a saved machine goes on with a network interface of the kind that it had: a tap, or a connection")
	case len(c.Shares) > MaxShares:
		return fail("%d shares, a VM has at most %d", len(c.Shares), MaxShares)
	}
	for _, word := range c.Cmdline {
		if word == "" || strings.ContainsAny(word, " \t\n\x00\"") {
			return fail("%q is not one word of a kernel command line", word)
		}
	}
	seen := map[string]bool{}
	for _, d := range c.Disks {
		if !plain(d.Serial, 20) || seen[d.Serial] {
			return fail("disk serial %q is not 1 to 20 letters, digits, '-', '_', '.', or not unique", d.Serial)
		}
		seen[d.Serial] = true
	}
	tags := map[string]bool{}
	for _, s := range c.Shares {
		if !plain(s.Tag, 31) || tags[s.Tag] {
			return fail("share tag %q is not 1 to 31 letters, digits, '-', '_', '.', or not unique", s.Tag)
		}
		tags[s.Tag] = true
		if err := checkEntries(s); err != nil {
			return fail("share %s: %v", s.Tag, err)
		}
	}
	if c.NIC != nil {
		if err := c.NIC.Check(); err != nil {
			return fail("%v", err)
		}
	}
	return nil
}

func checkEntries(s Share) error {
	if len(s.Entries) > MaxEntries {
		return fmt.Errorf("%d entries, at most %d", len(s.Entries), MaxEntries)
	}
	names := map[string]bool{}
	for _, e := range s.Entries {
		if err := e.Check(); err != nil {
			return err
		}
		if names[e.Name] {
			return fmt.Errorf("entry name %q is not unique", e.Name)
		}
		names[e.Name] = true
	}
	return nil
}

// Check says what is wrong with e.
func (e *ShareEntry) Check() error {
	switch {
	case !plainEntry(e.Name):
		return fmt.Errorf("entry name %q is not 1 to 64 letters, digits, '-', '_', '.'", e.Name)
	case !strings.HasPrefix(e.HostPath, "/") || strings.IndexByte(e.HostPath, 0) >= 0:
		return fmt.Errorf("host path %q is not absolute", e.HostPath)
	}
	return nil
}

func plainEntry(name string) bool {
	dir, base, nested := strings.Cut(name, "/")
	return Plain(dir) && (!nested || Plain(base))
}

// Plain reports whether s can be the name of an entry.
func Plain(s string) bool { return plain(s, 64) }

// plain reports whether s can be part of a file name and of a monitor's
// option without quoting.
func plain(s string, most int) bool {
	if s == "" || len(s) > most || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
