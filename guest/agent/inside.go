package agent

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// defaultMounts are what a container finds without asking, as with docker.
func (c *container) defaultMounts() []*api.Mount {
	cgroups := []string{"ro", "nosuid", "noexec", "nodev"}
	sys := []string{"ro", "nosuid", "noexec", "nodev"}
	if c.request.Privileged {
		sys[0], cgroups[0] = "rw", "rw"
	}
	return []*api.Mount{
		{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Options: []string{"nosuid", "noexec", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		{Destination: "/sys", Type: "sysfs", Options: sys},
		{Destination: "/sys/fs/cgroup", Type: "cgroup2", Options: cgroups},
	}
}

// allMounts is the request's list with the defaults before it that it does not
// replace.
func (c *container) allMounts() []*api.Mount {
	if c.request.NoDefaultMounts {
		return c.request.Mounts
	}
	asked := make(map[string]*api.Mount, len(c.request.Mounts))
	for _, m := range c.request.Mounts {
		asked[path.Clean("/"+m.Destination)] = m
	}
	var list []*api.Mount
	for _, m := range c.defaultMounts() {
		// In the default's place: what lies below must come later.
		if other := asked[m.Destination]; other != nil {
			m = other
			delete(asked, m.Destination)
		}
		list = append(list, m)
	}
	for _, m := range c.request.Mounts {
		if clean := path.Clean("/" + m.Destination); asked[clean] == m || !isDefault(clean) {
			list = append(list, m)
		}
	}
	return list
}

func isDefault(destination string) bool {
	switch destination {
	case "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup":
		return true
	}
	return false
}

// maxMounts bounds a container's mounts.
const maxMounts = 1024

// detachAll makes every mount of the container, files included, without a place.
// It returns those made so far also with an error.
func (c *container) detachAll() ([]*mount, error) {
	list := c.allMounts()
	if len(list)+len(c.request.Files) > maxMounts {
		return nil, fail(codes.InvalidArgument, fmt.Errorf("more than %d mounts", maxMounts))
	}
	var mounts []*mount
	for _, m := range list {
		d := &mount{Mount: m}
		if err := c.detach(d); err != nil {
			return mounts, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		mounts = append(mounts, d)
	}
	if len(c.request.Files) == 0 {
		return mounts, nil
	}
	// The files lie in a filesystem in memory of their own, so that the container can
	// write to them and the image never holds them.
	dir := c.dir + "/source"
	if err := unix.Mkdir(dir, 0o700); err != nil && err != unix.EEXIST {
		return mounts, fmt.Errorf("make directory %s: %w", dir, err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=1m"); err != nil {
		return mounts, fmt.Errorf("mount files: %w", err)
	}
	for i, f := range c.request.Files {
		name := dir + "/" + strconv.Itoa(i)
		mode := f.Mode & 0o777
		if mode == 0 {
			mode = 0o644
		}
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, mode)
		if err != nil {
			return mounts, fmt.Errorf("make file %s: %w", f.Path, err)
		}
		n, err := unix.Write(fd, f.Content)
		unix.Close(fd)
		if err != nil || n != len(f.Content) {
			return mounts, fmt.Errorf("write file %s (1 MiB is the most for all of them): %w", f.Path, err)
		}
		if err := c.giveRoot(unix.AT_FDCWD, name); err != nil {
			return mounts, err
		}
		tree, err := cloneTree(unix.AT_FDCWD, name, false)
		if err != nil {
			return mounts, fmt.Errorf("bind file %s: %w", f.Path, err)
		}
		mounts = append(mounts, &mount{Mount: &api.Mount{Destination: f.Path}, fd: tree, file: true})
	}
	return mounts, nil
}

// makeDevices makes the container's device nodes.
func (c *container) makeDevices() error {
	devices := c.request.Devices
	if c.request.Privileged {
		devices = append(machineDevices(), devices...)
	}
	for _, d := range devices {
		if err := c.makeDevice(d); err != nil {
			return fmt.Errorf("make device %s: %w", d.Path, err)
		}
	}
	return nil
}

func (c *container) makeDevice(d *api.Device) error {
	var kind uint32
	switch d.Type {
	case "c", "u", "":
		kind = unix.S_IFCHR
	case "b":
		kind = unix.S_IFBLK
	case "p":
		kind = unix.S_IFIFO
	default:
		return fail(codes.InvalidArgument, fmt.Errorf("type %q: want c, b or p", d.Type))
	}
	mode := d.Mode & 0o7777
	if mode == 0 {
		mode = 0o666
	}
	name := path.Clean("/" + d.Path)
	if err := makeDirs(path.Dir(name), 0o755); err != nil {
		return err
	}
	number := int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))
	err := unix.Mknod(name, kind|mode, number)
	if err == unix.EEXIST {
		if err := unix.Unlink(name); err != nil {
			return err
		}
		err = unix.Mknod(name, kind|mode, number)
	}
	if err != nil {
		return err
	}
	uid, err := c.machineUID(d.Uid)
	if err != nil {
		return err
	}
	gid, err := c.machineGID(d.Gid)
	if err != nil {
		return err
	}
	return unix.Lchown(name, int(uid), int(gid))
}

// machineDevices are the devices of the machine, for privileged containers: all but
// the way to the host.
func machineDevices() []*api.Device {
	var list []*api.Device
	for _, class := range []struct{ dir, kind string }{{"/sys/dev/char", "c"}, {"/sys/dev/block", "b"}} {
		names, _ := readDir(class.dir)
		for _, n := range names {
			b, err := readFile(class.dir+"/"+n+"/uevent", 4096)
			if err != nil {
				continue
			}
			d := parseUevent(string(b))
			if d == nil || class.kind == "c" && d.Major == portMajor() || isDefault("/dev/"+d.Path) {
				continue
			}
			switch d.Path {
			case "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx":
				continue
			}
			d.Type, d.Path = class.kind, "/dev/"+d.Path
			list = append(list, d)
		}
	}
	return list
}

// parseUevent reads a device's uevent file; its path is relative to /dev.
func parseUevent(text string) *api.Device {
	d := &api.Device{Major: -1, Minor: -1}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "MAJOR":
			d.Major, _ = strconv.ParseInt(value, 10, 32)
		case "MINOR":
			d.Minor, _ = strconv.ParseInt(value, 10, 32)
		case "DEVNAME":
			d.Path = value
		case "DEVMODE":
			mode, _ := strconv.ParseUint(value, 8, 12)
			d.Mode = uint32(mode)
		}
	}
	if d.Path == "" || d.Major < 0 || d.Minor < 0 {
		return nil
	}
	if d.Mode == 0 {
		d.Mode = 0o600
	}
	return d
}

// portMajor is the device number of virtio-serial ports, 0 when there are none.
var portMajor = sync.OnceValue(func() int64 {
	names, err := readDir("/sys/class/virtio-ports")
	if err != nil || len(names) == 0 {
		return 0
	}
	b, err := readFile("/sys/class/virtio-ports/"+names[0]+"/dev", 64)
	if err != nil {
		return 0
	}
	major, _, _ := strings.Cut(trim(b), ":")
	n, _ := strconv.ParseInt(major, 10, 32)
	return n
})

// masks are the two mounts that hide paths: an empty directory and a device that
// is always empty.
type masks struct {
	dir, file mask
}

type mask struct {
	fd int
	// used says that the mount has a place; further places get copies of it.
	used bool
}

const hidden = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// newMasks makes them where the agent's devices are.
func (c *container) newMasks() (*masks, error) {
	m := &masks{dir: mask{fd: -1}, file: mask{fd: -1}}
	if len(c.request.MaskedPaths) == 0 {
		return m, nil
	}
	var err error
	if m.dir.fd, err = m.another(true); err != nil {
		return m, err
	}
	m.file.fd, err = m.another(false)
	return m, err
}

// another makes a further detached mount that hides a directory or a file.
func (m *masks) another(dir bool) (int, error) {
	if dir {
		return newFilesystem("tmpfs", "tmpfs", []string{"mode=0755", "nr_inodes=2", "size=4k"}, hidden)
	}
	fd, err := cloneTree(unix.AT_FDCWD, "/dev/null", false)
	if err != nil {
		return -1, fmt.Errorf("clone /dev/null: %w", err)
	}
	// Read-only also keeps the container from changing the agent's node.
	if err := setAttr(fd, hidden&^unix.MOUNT_ATTR_NODEV, 0, 0, false); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make /dev/null read-only: %w", err)
	}
	return fd, nil
}

func (m *masks) close() {
	for _, k := range []mask{m.dir, m.file} {
		if k.fd >= 0 {
			unix.Close(k.fd)
		}
	}
}

// hide covers paths inside the container. Those that do not exist are well.
func (m *masks) hide(paths []string) error {
	if len(paths) > maxMounts {
		return fail(codes.InvalidArgument, fmt.Errorf("more than %d masked paths", maxMounts))
	}
	for _, p := range paths {
		target, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			continue
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
		err = m.cover(target)
		unix.Close(target)
		if err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	return nil
}

// cover hides one path.
func (m *masks) cover(target int) error {
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	k := &m.file
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		k = &m.dir
	}
	if !k.used {
		k.used = true
		return attach(k.fd, target)
	}
	tree, err := cloneTree(k.fd, "", false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return attach(tree, target)
}

// protect makes paths inside the container read-only. Those that do not exist
// are well.
func protect(paths []string) error {
	if len(paths) > maxMounts {
		return fail(codes.InvalidArgument, fmt.Errorf("more than %d read-only paths", maxMounts))
	}
	for _, p := range paths {
		tree, err := cloneTree(unix.AT_FDCWD, p, true)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			continue
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", p, err)
		}
		err = setAttr(tree, unix.MOUNT_ATTR_RDONLY, 0, 0, true)
		if err == nil {
			err = unix.MoveMount(tree, "", unix.AT_FDCWD, p, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
		}
		unix.Close(tree)
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", p, err)
		}
	}
	return nil
}
