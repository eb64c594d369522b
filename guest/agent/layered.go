package agent

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/guest/block"
)

// layerRoot makes the root filesystem of an image in a file of a share, and of a writable layer in a directory of one.
// What is only read is then kept in this machine's memory, and the host is not asked; what is written is on the host at once.
func (c *container) layerRoot(r *api.RootFS) error {
	if r.Image == "" || r.Layer == "" || r.Share != "" || r.Disk != "" || r.Verity != nil || r.ScratchDisk != "" || r.SealedBytes != 0 || r.TmpfsBytes != 0 {
		return fail(codes.InvalidArgument, errors.New("a root filesystem of image and layer on shares needs both, and has neither disks nor another writable layer"))
	}
	lower, upper, root := c.dir+"/lower", c.dir+"/upper", c.dir+"/root"
	for _, dir := range []string{lower, upper, root} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make directory %s: %w", dir, err)
		}
	}
	if err := mountImage(r.Image, lower); err != nil {
		return fmt.Errorf("mount image %q: %w", r.Image, err)
	}
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
	options := "lowerdir=" + lower + ",upperdir=" + upper + "/fs,workdir=" + upper + "/work,userxattr"
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("lay the writable layer %q over the image: %w", r.Layer, err)
	}
	return nil
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
