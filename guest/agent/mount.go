package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// mount is one of a container's mounts on its way from a request to its place.
// It is made detached, where its source can be named, and attached after the
// thread has entered the container's root, where its destination means what
// the container means by it.
type mount struct {
	*api.Mount
	mountOptions
	// fd is the detached mount.
	fd int
	// file says that the source is not a directory.
	file bool
}

// newFilesystem makes a detached mount of a fresh filesystem.
func newFilesystem(fstype, source string, data []string, attrs uint64) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err == unix.ENODEV {
		return -1, fmt.Errorf("filesystem type %q is not in the guest's kernel", fstype)
	}
	if err != nil {
		return -1, fmt.Errorf("make %s filesystem: %w", fstype, err)
	}
	defer unix.Close(fs)
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, explain(fs, fmt.Errorf("take %s as source of a %s filesystem: %w", source, fstype, err))
		}
	}
	for _, o := range data {
		key, value, hasValue := strings.Cut(o, "=")
		if hasValue {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, explain(fs, fmt.Errorf("option %q of %s: %w", o, fstype, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explain(fs, fmt.Errorf("make %s filesystem: %w", fstype, err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
	if err != nil {
		return -1, explain(fs, fmt.Errorf("mount %s filesystem: %w", fstype, err))
	}
	return fd, nil
}

// explain adds what the filesystem said about its failure.
func explain(fs int, err error) error {
	buf := make([]byte, 512)
	for {
		n, e := unix.Read(fs, buf)
		if e != nil || n <= 0 {
			return err
		}
		if line := trim(buf[:n]); strings.HasPrefix(line, "e ") {
			err = fmt.Errorf("%w (%s)", err, line[2:])
		}
	}
}

// cloneTree makes a detached copy of the mount at path, which may be empty to
// mean the descriptor dir itself.
func cloneTree(dir int, path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(dir, path, flags)
}

// attach puts a detached mount on the object that target refers to.
func attach(fd, target int) error {
	return unix.MoveMount(fd, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// setAttr changes a mount's attributes.
func setAttr(fd int, set, clear, propagation uint64, below bool) error {
	if set == 0 && clear == 0 && propagation == 0 {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if below {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation})
}

// detach makes the detached mount of m. It runs on the container's thread
// before that has entered its root: sources are the agent's.
func (c *container) detach(m *mount) error {
	var err error
	m.fd = -1
	if m.mountOptions, err = parseMountOptions(m.Options); err != nil {
		return err
	}
	kind := m.Type
	if m.bind {
		switch kind {
		case "", "none", "bind":
			kind = "bind"
		case "share", "disk", "device", "projection":
		default:
			kind = "bind"
		}
	}
	switch kind {
	case "proc":
		// It shows the PID namespace of who mounts it: see procfs.
		return nil
	case "sysfs", "mqueue":
		m.fd, err = newFilesystem(kind, m.source(), m.data, m.set)
	case "tmpfs", "ramfs":
		m.fd, err = c.newMemory(kind, m.source(), m.data, m.set)
	case "devpts":
		var data []string
		if data, err = c.ownerOptions(m.data, false); err == nil {
			m.fd, err = newFilesystem(kind, m.source(), data, m.set)
		}
	case "cgroup", "cgroup2":
		m.fd, err = cloneTree(unix.AT_FDCWD, c.cgroup.path, false)
	case "share":
		m.fd, err = cloneShare(m.Source)
	case "disk":
		m.fd, err = c.mountDisk(m.Source, m.data, m.set)
	case "device":
		m.fd, err = cloneDevice(m.Source)
	case "projection":
		m.fd, err = cloneProjection(m.Source)
	case "bind":
		m.fd, err = openVolume(m.Source, m.recursive)
	default:
		return fmt.Errorf("filesystem type %q is not offered", m.Type)
	}
	if err != nil {
		return err
	}
	if m.subdir != "" {
		if err := c.descend(m); err != nil {
			return err
		}
	}
	if kind == "device" {
		m.set, m.clear = m.set&^unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_RDONLY, m.clear&^unix.MOUNT_ATTR_RDONLY
	}
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return fmt.Errorf("stat source: %w", err)
	}
	m.file = st.Mode&unix.S_IFMT != unix.S_IFDIR
	return nil
}

// newMemory makes a filesystem in memory.
func (c *container) newMemory(kind, source string, data []string, attrs uint64) (int, error) {
	data, err := c.ownerOptions(data, kind == "tmpfs")
	if err != nil {
		return -1, err
	}
	if !hasOption(data, "mode=") {
		data = append([]string{"mode=1777"}, data...)
	}
	return newFilesystem(kind, source, data, attrs)
}

// descend replaces the mount by one of its subdirectory. A detached mount cannot
// be cloned, so it is attached for a moment where only the agent sees it.
func (c *container) descend(m *mount) error {
	at := c.dir + "/source"
	if err := unix.Mkdir(at, 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make directory %s: %w", at, err)
	}
	if err := unix.MoveMount(m.fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach source: %w", err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	dir, err := makeBelow(m.fd, path.Clean(m.subdir))
	if err != nil {
		return fmt.Errorf("make directory %q in the source: %w", m.subdir, err)
	}
	defer unix.Close(dir)
	fd, err := cloneTree(dir, "", false)
	if err != nil {
		return fmt.Errorf("take directory %q of the source: %w", m.subdir, err)
	}
	unix.Close(m.fd)
	m.fd = fd
	return nil
}

// source is what the table of mounts calls the source of a fresh filesystem.
func (m *mount) source() string {
	if m.Source == "" {
		return m.Type
	}
	return m.Source
}

func hasOption(data []string, prefix string) bool {
	for _, o := range data {
		if strings.HasPrefix(o, prefix) {
			return true
		}
	}
	return false
}

// cloneBelow clones entry of a directory, out of which neither ".." nor a
// symbolic link leads.
func cloneBelow(dir, entry string, recursive bool) (int, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(root)
	fd := root
	if entry = strings.Trim(entry, "/"); entry != "" {
		fd, err = unix.Openat2(root, entry, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", entry, err)
		}
		defer unix.Close(fd)
	}
	tree, err := cloneTree(fd, "", recursive)
	if err != nil {
		return -1, fmt.Errorf("bind %s: %w", entry, err)
	}
	return tree, nil
}

// cloneShare clones TAG/ENTRY.
func cloneShare(source string) (int, error) {
	tag, entry, _ := strings.Cut(source, "/")
	if !isName(tag) {
		return -1, fail(codes.InvalidArgument, fmt.Errorf("source %q: want TAG/ENTRY", source))
	}
	fd, err := cloneBelow(sharesDir+"/"+tag, entry, true)
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("share entry %q does not exist", source)
	}
	return fd, err
}

// cloneDevice clones the node of a device that every container has. It is the agent's, so
// it is mounted read-only: that keeps its owner and mode, and lets the device be written to.
func cloneDevice(name string) (int, error) {
	for _, n := range defaultNodes {
		if n.name != name {
			continue
		}
		fd, err := cloneTree(unix.AT_FDCWD, "/dev/"+name, false)
		if err != nil {
			return -1, fmt.Errorf("bind /dev/%s: %w", name, err)
		}
		return fd, nil
	}
	return -1, fail(codes.InvalidArgument, fmt.Errorf("source %q is not a device that every container has", name))
}

// openVolume clones a directory in memory that the containers of the sandbox
// share by its name; it is made on first use.
func openVolume(name string, recursive bool) (int, error) {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" {
		return -1, errors.New("source of a bind mount is empty")
	}
	root, err := unix.Open(volumesDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", volumesDir, err)
	}
	defer unix.Close(root)
	dir, err := makeBelow(root, name)
	if err != nil {
		return -1, fmt.Errorf("make shared directory %q: %w", name, err)
	}
	defer unix.Close(dir)
	return cloneTree(dir, "", recursive)
}

// makeBelow makes the directories of name below the directory root, and opens the
// last. Nothing leads out of root.
func makeBelow(root int, name string) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for end := range len(name) + 1 {
		if end < len(name) && name[end] != '/' {
			continue
		}
		part := name[:end]
		fd, err := unix.Openat2(root, part, how)
		if err == nil {
			if end == len(name) {
				return fd, nil
			}
			unix.Close(fd)
			continue
		}
		if err != unix.ENOENT {
			return -1, err
		}
		parent, base := path.Split(part)
		if parent == "" {
			parent = "."
		}
		dir, err := unix.Openat2(root, parent, how)
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(dir, base, 0o755)
		unix.Close(dir)
		if err != nil && err != unix.EEXIST {
			return -1, err
		}
		fd, err = unix.Openat2(root, part, how)
		if err != nil {
			return -1, err
		}
		if end == len(name) {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, unix.ENOENT
}

// mountDisk mounts the filesystem of the disk with this serial.
func (c *container) mountDisk(serial string, data []string, attrs uint64) (int, error) {
	dev, err := awaitDisk(serial)
	if err != nil {
		return -1, err
	}
	kind, err := diskFormat(dev)
	if err != nil {
		return -1, err
	}
	if kind == "erofs" {
		data = append([]string{"ro"}, data...)
	}
	fd, err := newFilesystem(kind, dev, data, attrs)
	if err != nil {
		return -1, fmt.Errorf("disk %q: %w", serial, err)
	}
	if kind == "erofs" {
		return fd, nil
	}
	if err := c.use(dev, fd, "."); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// diskFormat looks at a disk's superblock.
func diskFormat(dev string) (string, error) {
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open disk %s: %w", dev, err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return "", fmt.Errorf("read disk %s: %w", dev, err)
	}
	switch {
	case n < len(buf):
	case binary.LittleEndian.Uint32(buf[1024:]) == unix.EROFS_SUPER_MAGIC_V1:
		return "erofs", nil
	case binary.LittleEndian.Uint16(buf[1024+0x38:]) == unix.EXT4_SUPER_MAGIC:
		return "ext4", nil
	}
	return "", fmt.Errorf("disk %s holds neither an ext4 nor an EROFS filesystem", dev)
}

// place attaches the mount at its destination. It runs on the container's
// thread inside its root, so that the destination's symbolic links lead nowhere else.
func (c *container) place(m *mount) error {
	dest := path.Clean("/" + m.Destination)
	if dest == "/" {
		return errors.New("a mount cannot replace the root")
	}
	if m.Populate || m.copyUp {
		if err := populate(dest, m.fd); err != nil {
			return fmt.Errorf("copy the image's content: %w", err)
		}
	}
	target, err := makeTarget(dest, m.file)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	// The mounts made here were given their attributes when they were made; a clone
	// is given them now, and "rw" has a meaning for a clone alone.
	if err := setAttr(m.fd, m.set, m.clear, 0, false); err != nil {
		return fmt.Errorf("set options: %w", err)
	}
	if err := setAttr(m.fd, m.setBelow, m.clearBelow, 0, true); err != nil {
		return fmt.Errorf("set options of the mounts below: %w", err)
	}
	if err := attach(m.fd, target); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	// Only an attached mount can belong to a peer group.
	if m.propagation != 0 {
		if err := setAttr(m.fd, 0, 0, m.propagation&^unix.MS_REC, m.propagation&unix.MS_REC != 0); err != nil {
			return fmt.Errorf("set propagation: %w", err)
		}
	}
	if m.Type == "tmpfs" && dest == "/dev" {
		return fillDev(m.fd)
	}
	return nil
}

// makeTarget opens what a mount shall cover, and makes it and its parents
// when absent.
func makeTarget(dest string, file bool) (int, error) {
	fd, err := unix.Open(dest, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("stat %s: %w", dest, err)
		}
		if isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; isDir == file {
			unix.Close(fd)
			if file {
				return -1, fail(codes.InvalidArgument, errors.New("the source is a file, the destination a directory"))
			}
			return -1, fail(codes.InvalidArgument, errors.New("the source is a directory, the destination a file"))
		}
		return fd, nil
	}
	if err != unix.ENOENT {
		return -1, fmt.Errorf("open destination: %w", err)
	}
	if !file {
		if err := makeDirs(dest, 0o755); err != nil {
			return -1, fmt.Errorf("make destination: %w", err)
		}
		return unix.Open(dest, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err := makeDirs(path.Dir(dest), 0o755); err != nil {
		return -1, fmt.Errorf("make destination: %w", err)
	}
	f, err := unix.Open(dest, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return -1, fmt.Errorf("make destination: %w", err)
	}
	unix.Close(f)
	return unix.Open(dest, unix.O_PATH|unix.O_CLOEXEC, 0)
}

// makeDirs makes a directory and its parents.
func makeDirs(dir string, mode uint32) error {
	err := unix.Mkdir(dir, mode)
	switch err {
	case nil:
		return nil
	case unix.ENOENT:
		if dir == "/" || dir == "." {
			return err
		}
		if err := makeDirs(path.Dir(dir), mode); err != nil {
			return err
		}
		if err := unix.Mkdir(dir, mode); err != unix.EEXIST {
			return err
		}
		return nil
	case unix.EEXIST:
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err == unix.ENOENT {
			// A link to a directory that does not exist yet, as /run/lock often.
			return makeLinked(dir, mode)
		} else if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return unix.ENOTDIR
		}
		return nil
	}
	return err
}

// makeLinked makes the directory that a dangling link points to.
func makeLinked(link string, mode uint32) error {
	for range 40 {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlink(link, buf)
		if err != nil {
			return err
		}
		target := string(buf[:n])
		if !strings.HasPrefix(target, "/") {
			target = path.Join(path.Dir(link), target)
		}
		var st unix.Stat_t
		if unix.Lstat(target, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			link = target
			continue
		}
		return makeDirs(target, mode)
	}
	return unix.ELOOP
}

// fillDev makes the nodes and links that every container finds in /dev.
func fillDev(dir int) error {
	for _, n := range defaultNodes {
		if err := unix.Mknodat(dir, n.name, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make /dev/%s: %w", n.name, err)
		}
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "fd"},
		{"/proc/self/fd/0", "stdin"},
		{"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"},
		{"/proc/kcore", "core"},
		{"pts/ptmx", "ptmx"},
	} {
		if err := unix.Symlinkat(l[0], dir, l[1]); err != nil && err != unix.EEXIST {
			return fmt.Errorf("link /dev/%s: %w", l[1], err)
		}
	}
	return nil
}

var defaultNodes = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3},
	{"zero", 1, 5},
	{"full", 1, 7},
	{"random", 1, 8},
	{"urandom", 1, 9},
	{"tty", 5, 0},
}
