package agent

import (
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// lasting begins the names of those that stay as long as the machine does: containers that run one after the other hand
// something on in them.
const lasting = "volume-"

// volumes are the directories in memory that are filesystems of their own, by name: how many
// mounts of containers there are of each. With the last one it goes, unless its name is a lasting one's.
var volumes = struct {
	sync.Mutex
	mounts map[string]int
}{mounts: make(map[string]int)}

// makeVolumes makes those that the container is the first to use. It runs in the agent's mount
// namespace, of which every container's begins as a copy.
func (c *container) makeVolumes() error {
	for _, m := range c.request.Mounts {
		if m.Type != "bind" {
			continue
		}
		o, err := parseMountOptions(m.Options)
		if err == nil && len(o.data) > 0 {
			err = c.makeVolume(m.Source, o.data)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	return nil
}

// maxVolumes bounds a machine's.
const maxVolumes = 512

func (c *container) makeVolume(name string, data []string) error {
	if !isName(name) {
		return fail(codes.InvalidArgument, fmt.Errorf("source %q: one with options of a filesystem is a name without a slash", name))
	}
	volumes.Lock()
	defer volumes.Unlock()
	if volumes.mounts[name] > 0 {
		c.hold(name)
		return nil
	}
	if len(volumes.mounts) >= maxVolumes {
		return fail(codes.ResourceExhausted, fmt.Errorf("more than %d filesystems in memory that containers share", maxVolumes))
	}
	fd, err := c.newMemory("tmpfs", "tmpfs", data, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	dir := volumesDir + "/" + name
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make shared directory %q: %w", name, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		unix.Rmdir(dir)
		return fmt.Errorf("attach shared directory %q: %w", name, err)
	}
	c.hold(name)
	if strings.HasPrefix(name, lasting) {
		volumes.mounts[name]++ // the machine's own
	}
	return nil
}

// hold counts a mount; the lock is held.
func (c *container) hold(name string) {
	volumes.mounts[name]++
	c.volumes = append(c.volumes, name)
}

// releaseVolumes takes the container's mounts back.
func (c *container) releaseVolumes() error {
	volumes.Lock()
	defer volumes.Unlock()
	var failed error
	for _, name := range c.volumes {
		if volumes.mounts[name]--; volumes.mounts[name] > 0 {
			continue
		}
		delete(volumes.mounts, name)
		dir := volumesDir + "/" + name
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			failed = fmt.Errorf("unmount shared directory %q: %w", name, err)
		} else if err := unix.Rmdir(dir); err != nil {
			failed = fmt.Errorf("remove shared directory %q: %w", name, err)
		}
	}
	c.volumes = nil
	return failed
}
