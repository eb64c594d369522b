package agent

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/guest/block"
)

// layerRoot makes the root filesystem of what is only read, an image in a file of a share or images on a disk, and of a writable layer
// in a directory of a share or on a disk. What is only read is then kept in this machine's memory, and the host is not asked;
// what is written to a share is on the host at once.
func (c *container) layerRoot(r *api.RootFS) error {
	if err := checkLayers(r); err != nil {
		return fail(codes.InvalidArgument, err)
	}
	lower, upper, root := c.dir+"/lower", c.dir+"/upper", c.dir+"/root"
	for _, dir := range []string{lower, upper, root} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make directory %s: %w", dir, err)
		}
	}
	if len(r.Parts) > 0 {
		if err := c.mountParts(r, lower); err != nil {
			return fmt.Errorf("mount the image's layers on disk %q: %w", r.Disk, err)
		}
	} else if err := mountImage(r.Image, lower); err != nil {
		return fmt.Errorf("mount image %q: %w", r.Image, err)
	}
	options := "lowerdir=" + lower
	if r.ScratchDisk != "" {
		if err := c.mountScratch(r.ScratchDisk, 0, upper); err != nil {
			return err
		}
		for _, dir := range []string{upper + "/upper", upper + "/work"} {
			if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
				return fmt.Errorf("make directory in the writable layer: %w", err)
			}
		}
		options += ",upperdir=" + upper + "/upper,workdir=" + upper + "/work"
	} else {
		fd, err := cloneShare(r.Layer)
		if err != nil {
			return fmt.Errorf("mount writable layer: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, upper, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount writable layer %q: %w", r.Layer, err)
		}
		// The host's server of the share may not set attributes of the space "trusted". Renamed directories and
		// files without their data would mean nothing to those who read the layer on the host.
		options += ",upperdir=" + upper + "/fs,workdir=" + upper + "/work,userxattr"
	}
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("lay the writable layer over the image: %w", err)
	}
	return nil
}

// maxParts bounds the images that follow each other on a disk.
const maxParts = 128

// checkLayers refuses what layerRoot cannot make a root of.
func checkLayers(r *api.RootFS) error {
	switch {
	case r.Share != "" || r.Verity != nil || r.TmpfsBytes != 0 || r.SealedBytes != 0:
		return errors.New("a root filesystem of layers has no share of its own, no check, and no writable layer in memory or encrypted")
	case len(r.Parts) == 0 && (r.Image == "" || r.Layer == "" || r.Disk != "" || r.ScratchDisk != ""):
		return errors.New("a root filesystem of image and layer on shares needs both, and has no disks")
	case len(r.Parts) > 0 && (r.Image != "" || r.Disk == "" || (r.Layer == "") == (r.ScratchDisk == "")):
		return errors.New("a root filesystem of images on a disk needs that disk, and one writable layer")
	case len(r.Parts) > maxParts:
		return fmt.Errorf("%d images on a disk, at most %d", len(r.Parts), maxParts)
	}
	for i, size := range r.Parts {
		if size == 0 || size%512 != 0 || size > 1<<50 {
			return fmt.Errorf("image %d on the disk has %d bytes", i, size)
		}
	}
	return nil
}

// mountParts mounts the images that follow each other on a disk over each other at dir. The marks of what they hide of those below are
// in another space of names than those that the writable layer may have, so they become a filesystem of their own.
func (c *container) mountParts(r *api.RootFS, dir string) error {
	disk, err := awaitDisk(r.Disk)
	if err != nil {
		return err
	}
	if err := checkSize(disk, r.Parts); err != nil {
		return err
	}
	if len(r.Parts) == 1 {
		return mountPart(disk, 0, r.Parts[0], dir)
	}
	parts := c.dir + "/parts"
	if err := unix.Mkdir(parts, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", parts, err)
	}
	if err := unix.Mount("tmpfs", parts, "tmpfs", unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount directories of the layers: %w", err)
	}
	var list string // names below parts, so that any number of them fits into the options
	var at uint64
	for i, size := range r.Parts {
		name := strconv.Itoa(i)
		if err := unix.Mkdir(parts+"/"+name, 0o700); err != nil {
			return fmt.Errorf("make directory of layer %d: %w", i, err)
		}
		if err := mountPart(disk, at/512, size, parts+"/"+name); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(r.Parts), err)
		}
		at += size
		if i > 0 {
			name += ":"
		}
		list = name + list
	}
	// The thread's working directory is its own, as its mounts are.
	if err := unix.Chdir(parts); err != nil {
		return err
	}
	defer unix.Chdir("/")
	// With handles of its files the writable layer on a share can note where its own come from. Without them it would note
	// that in an empty attribute, which 9p does not have. They are not to be had with directories of other names below.
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "nfs_export=on,redirect_dir=nofollow,lowerdir="+list); err != nil {
		return fmt.Errorf("lay them over each other: %w", err)
	}
	return nil
}

// checkSize refuses a disk that is not as large as its parts together: they would not be where they are looked for.
func checkSize(disk string, parts []uint64) error {
	sectors, err := readNumber("/sys/class/block/" + strings.TrimPrefix(disk, "/dev/") + "/size")
	if err != nil {
		return err
	}
	for _, size := range parts {
		sectors -= size / 512
	}
	if sectors != 0 {
		return fmt.Errorf("the disk is larger or smaller than they are, by %d sectors", int64(sectors))
	}
	return nil
}

// mountPart mounts the EROFS image of bytes from sector (512 bytes) of a disk at dir. What makes a device of it ends with the mount.
func mountPart(disk string, sector, bytes uint64, dir string) error {
	d, err := block.Map(block.Target{Kind: "linear", Line: disk + " " + strconv.FormatUint(sector, 10), Bytes: bytes, ReadOnly: true})
	if err != nil {
		return err
	}
	return errors.Join(mountEROFS(d.Path(), dir), d.Remove())
}

// mountImage mounts an EROFS image in a file of a share at dir.
func mountImage(source, dir string) error {
	tree, err := cloneShare(source)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	file, err := unix.Open("/proc/self/fd/"+strconv.Itoa(tree), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(file)
	loop, name, err := block.Loop(file, true)
	if err != nil {
		return err
	}
	// Once it is mounted, the device is freed with the mount.
	defer unix.Close(loop)
	return mountEROFS(name, dir)
}
