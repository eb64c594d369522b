package agent

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// buildRoot mounts the container's root filesystem at c.dir/root: the image's
// EROFS, and over it a writable layer in memory or on a scratch disk. It runs
// on the container's thread, in whose mount namespace alone all this exists, so
// it disappears with the container.
func (c *container) buildRoot(r *api.RootFS) error {
	if r.GetShare() != "" {
		return c.shareRoot(r)
	}
	if r.GetImage() != "" || r.GetLayer() != "" || len(r.GetParts()) > 0 {
		return c.layerRoot(r)
	}
	if r == nil || r.Disk == "" {
		return fail(codes.InvalidArgument, errors.New("no root disk"))
	}
	lower, upper, root := c.dir+"/lower", c.dir+"/upper", c.dir+"/root"
	for _, dir := range []string{lower, upper, root} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make directory %s: %w", dir, err)
		}
	}
	dev, err := awaitDisk(r.Disk)
	if err != nil {
		return err
	}
	if r.Verity != nil && r.Verity.RootHash != "" {
		if c.verity, err = openVerity(dev, r.Verity); err != nil {
			return fmt.Errorf("check root disk %q: %w", r.Disk, err)
		}
		dev = c.verity.Path()
	}
	if err := mountEROFS(dev, lower); err != nil {
		switch {
		case err == unix.EIO && c.verity != nil:
			err = errors.New("its content does not match the image's root hash (the image is damaged or was changed)")
		case err == unix.EIO:
			err = errors.New("it cannot be read")
		}
		return fmt.Errorf("mount root disk %q: %w", r.Disk, err)
	}
	if r.ScratchDisk != "" {
		if err := c.mountScratch(r.ScratchDisk, r.SealedBytes, upper); err != nil {
			return err
		}
	} else if r.SealedBytes != 0 {
		return fail(codes.InvalidArgument, errors.New("an encrypted writable layer needs a disk"))
	} else {
		data := "mode=0755"
		if r.TmpfsBytes != 0 {
			data += ",size=" + strconv.FormatUint(r.TmpfsBytes, 10)
		}
		if err := unix.Mount("tmpfs", upper, "tmpfs", unix.MS_NODEV, data); err != nil {
			return fmt.Errorf("mount writable layer: %w", err)
		}
	}
	for _, dir := range []string{upper + "/data", upper + "/work"} {
		if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make directory in the writable layer: %w", err)
		}
	}
	// redirect_dir lets directories of the image be renamed; metacopy lets
	// their files change owner without a copy of the content.
	options := "lowerdir=" + lower + ",upperdir=" + upper + "/data,workdir=" + upper + "/work,redirect_dir=on,metacopy=on"
	if err := copyRootMeta(lower, upper+"/data"); err != nil {
		return err
	}
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("lay the writable layer over the image: %w", err)
	}
	return nil
}

// seal has the guard make an encrypted disk out of one, and an empty ext4 on it, and returns where it is and how that
// is mounted.
func (c *container) seal(disk string, bytes uint64) (path, options string, err error) {
	if c.sealer == nil {
		return "", "", fail(codes.Unimplemented, errors.New("only the agent of a confidential machine encrypts its disks"))
	}
	if path, options, c.unseal, err = c.sealer.Seal(c.id, disk, bytes); err != nil {
		return "", "", fmt.Errorf("encrypt the writable layer: %w", err)
	}
	return path, options, nil
}

// mountScratch mounts the writable disk with this serial, of the container alone, at dir. If sealed is not 0, its first so many bytes are
// encrypted first, and made an empty ext4.
func (c *container) mountScratch(serial string, sealed uint64, dir string) error {
	scratch, err := awaitDisk(serial)
	if err != nil {
		return err
	}
	options := ""
	if sealed != 0 {
		if scratch, options, err = c.seal(scratch, sealed); err != nil {
			return err
		}
	}
	if err := unix.Mount(scratch, dir, "ext4", unix.MS_NOATIME|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount scratch disk %q as ext4: %w", serial, err)
	}
	return c.use(scratch, unix.AT_FDCWD, dir)
}

// mountEROFS mounts the image on a block device at dir.
func mountEROFS(dev, dir string) error {
	err := unix.Mount(dev, dir, "erofs", unix.MS_RDONLY|unix.MS_NOATIME, "")
	if err == unix.EINVAL {
		return errors.New("it holds no EROFS filesystem that this guest understands")
	}
	return err
}

// shareRoot makes an entry of a share the root filesystem, as it is.
func (c *container) shareRoot(r *api.RootFS) error {
	if r.Disk != "" || r.Verity != nil || r.ScratchDisk != "" || r.SealedBytes != 0 || r.TmpfsBytes != 0 {
		return fail(codes.InvalidArgument, errors.New("a root filesystem on a share has neither disk nor writable layer"))
	}
	fd, err := cloneShare(r.Share)
	if err != nil {
		return fmt.Errorf("mount root filesystem: %w", err)
	}
	defer unix.Close(fd)
	root := c.dir + "/root"
	if err := unix.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("make directory %s: %w", root, err)
	}
	// A file as the source is refused by the kernel.
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, root, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount root filesystem %q: %w", r.Share, err)
	}
	return nil
}

// copyRootMeta gives the root directory of a fresh writable layer, which hides the
// image's, the image's owner and mode.
func copyRootMeta(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return fmt.Errorf("stat the image's root: %w", err)
	}
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("set owner of the root directory: %w", err)
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("set mode of the root directory: %w", err)
	}
	return nil
}

// enterRoot makes c.dir/root the root of the calling thread's mount namespace
// and drops everything else from it.
func (c *container) enterRoot() error {
	if err := unix.Chdir(c.dir + "/root"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the agent's root: %w", err)
	}
	return unix.Chdir("/")
}

// use notes a writable disk whose filesystem has a directory at path.
func (c *container) use(disk string, dir int, path string) error {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open filesystem of %s: %w", disk, err)
	}
	c.disks = append(c.disks, usedDisk{disk, fd})
	return nil
}

// releaseTimeout bounds the wait for a filesystem's end.
const releaseTimeout = 5 * time.Second

// awaitRelease waits until no filesystem uses a disk, so that its file on the
// host is complete when the host hears that the container is removed. The kernel
// tells nobody, so it is asked again and again, at growing distances.
func awaitRelease(disk string) error {
	deadline := time.Now().Add(releaseTimeout)
	for pause := time.Millisecond; ; pause *= 2 {
		fd, err := unix.Open(disk, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			return nil
		}
		if err != unix.EBUSY {
			return fmt.Errorf("release disk %s: %w", disk, err)
		}
		if time.Now().After(deadline) {
			// Another container of the sandbox uses it as well.
			return nil
		}
		time.Sleep(pause)
	}
}
