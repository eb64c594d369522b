package shim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/defaults"
	containerd "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"manis/bundle"
	"manis/cgroup"
	"manis/version"
)

// manager answers what containerd asks the program, not the process that serves.
type manager struct{}

func (manager) Name() string { return Name }

// Start is not asked for here: see start.
func (manager) Start(context.Context, *bootstrap.BootstrapParams) (*bootstrap.BootstrapResult, error) {
	return nil, errors.New("start is the last of the arguments")
}

// Info describes the runtime. containerd's CRI looks among its features for recursive read-only mounts and user
// namespaces, and tells the kubelet.
func (manager) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	// As containerd has it.
	typeurl.Register(&features.Features{}, "types.containerd.io", "opencontainers/runtime-spec", strconv.Itoa(specs.VersionMajor), "features", "Features")
	f, yes := bundle.Features(), true
	f.MountOptions = append(f.MountOptions, "idmap", "ridmap")
	f.Linux.MountExtensions.IDMap.Enabled = &yes
	offered, err := typeurl.MarshalAnyToProto(f)
	if err != nil {
		return nil, err
	}
	return &types.RuntimeInfo{Name: Name, Version: &types.RuntimeVersion{Version: version.Version}, Features: offered}, nil
}

// Stop cleans up after a shim that was killed, or does not answer, and after containers of such a pod: the machine,
// the control group, directories and mounts. It may be called more than once.
func (manager) Stop(ctx context.Context, id string) (containerd.StopStatus, error) {
	status := containerd.StopStatus{ExitStatus: 128 + int(unix.SIGKILL)}
	dir, err := os.Getwd()
	if err != nil {
		return status, err
	}
	if o, ok := ctx.Value(containerd.OptsKey{}).(containerd.Opts); ok && o.BundlePath != "" {
		dir = o.BundlePath
	}
	if filepath.Base(dir) != id {
		dir = filepath.Join(filepath.Dir(dir), id)
	}
	found, err := cleanGround(filepath.Join(dir, noteName), &status)
	errs := []error{err}
	if found {
		errs = append(errs, removeSocket(ctx, dir, id))
	}
	if b, err := bundle.Load(dir); err == nil {
		if root := rootOf(b); root != "" {
			errs = append(errs, unmount(root))
		}
	}
	status.ExitedAt = time.Now()
	return status, errors.Join(errs...)
}

// maxNote bounds the note, bytes.
const maxNote = 64 << 10

// cleanGround ends the shim that has written a note, if it lives, and takes away what it had. Without a note
// there is nothing to do.
func cleanGround(path string, status *containerd.StopStatus) (found bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // it is another one's pod, or ended orderly
	}
	if err != nil {
		return true, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxNote))
	if err != nil {
		return true, err
	}
	n := new(note)
	if err := json.Unmarshal(text, n); err != nil || n.PID <= 1 || n.Dir != "" && !filepath.IsAbs(n.Dir) {
		return true, fmt.Errorf("%s is damaged: what the shim had cannot be found", path)
	}
	status.Pid = n.PID
	if err := n.kill(f); err != nil {
		return true, err
	}
	// What it has noted last.
	if text, err = io.ReadAll(io.NewSectionReader(f, 0, maxNote)); err == nil {
		err = json.Unmarshal(text, n)
	}
	errs := []error{err}
	if n.Dir != "" {
		errs = append(errs, os.RemoveAll(n.Dir))
	}
	if n.Group != "" {
		// Its machine ends with the shim, a moment later: Remove waits for that.
		if g, err := cgroup.Find(cgroup.Config{Path: n.Group}); err == nil {
			errs = append(errs, g.Remove())
		}
	}
	return true, errors.Join(append(errs, os.Remove(path))...)
}

// removeSocket removes the socket of a shim that was killed, whose bundle is dir.
func removeSocket(ctx context.Context, dir, id string) error {
	sockets, err := os.Readlink(filepath.Join(dir, socketLink))
	if err != nil {
		sockets = filepath.Join(defaults.DefaultStateDir, "s")
	}
	var address string
	if f := flag.Lookup("address"); f != nil { // containerd's own
		address = f.Value.String()
	}
	socket, err := containerd.CreateSocketAddress(ctx, sockets, address, id, false)
	if err == nil {
		err = containerd.RemoveSocket(socket)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// killTime is how long the kernel may take to end a killed shim.
const killTime = 5 * time.Second

// kill ends the process that has the lock on its note, and waits for that: as long as it has, the id is its.
func (n *note) kill(f *os.File) error {
	deadline := time.Now().Add(killTime)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return fmt.Errorf("end the shim, process %d: %w", n.PID, err)
		}
		unix.Kill(n.PID, unix.SIGKILL)
		time.Sleep(time.Millisecond)
	}
}
