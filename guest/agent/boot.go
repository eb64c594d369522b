package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	api "manis/api/agent"
	"manis/api/wire"
)

// Directories of the agent's own root, which no container ever sees.
const (
	runDir        = "/run/manis"
	containersDir = runDir + "/containers"
	sharesDir     = runDir + "/shares"
	volumesDir    = runDir + "/volumes"
	cgroupRoot    = "/sys/fs/cgroup"
)

// Descriptors that the agent keeps for ever: its /dev/null, opened for both
// directions; its /proc, which means more than a container's; its namespaces.
var nullFile, procDir, ownNamespaces = -1, -1, -1

// Run is the life of process 1: it makes the user space, waits for the host's
// port, and serves requests until the machine is off. It returns only to a caller
// that is not process 1. The caller has bound itself to the process's first thread.
func Run(version string) error { return RunGuarded(version, nil) }

// RunGuarded is Run for an agent that serves what its guard permits; nil permits all.
func RunGuarded(version string, protector Guard) error {
	if os.Getpid() != 1 {
		return errors.New("the agent is process 1 of a virtual machine and does nothing elsewhere")
	}
	// The calling thread is the process's first and does nothing else.
	ended := make(chan error, 1)
	go func() { ended <- run(version, protector) }()
	err := <-ended
	if err != nil {
		complain("%v", err)
	}
	powerOff()
	return err
}

func run(version string, protector Guard) error {
	// A small heap: the machine's memory is the container's. But no collection while a
	// container starts, which begins with some 2 MB: under emulation, the code of the
	// collector alone takes tens of milliseconds to be translated.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(24 << 20)
	if err := userSpace(); err != nil {
		return err
	}
	if toBeFrozen() {
		rehearse()
	}
	port, err := openPort(portName)
	if err != nil {
		return err
	}
	s := newService(version, port)
	s.protector = protector
	s.readyNS = monotonic()
	for {
		err := s.serve()
		if !s.detached() {
			return err // not closed: where the host has gone, whoever writes to it would be waited for without end
		}
		// The next one must not meet what is left of this one.
		s.guest.Close()
		if err := s.port.meet(s.mark); err != nil {
			return fmt.Errorf("end a session: %w", err)
		}
	}
}

// serve answers one session of the host's.
func (s *service) serve() error {
	guest, err := wire.NewServer(s.port)
	if err != nil {
		return err
	}
	s.guest = guest
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(s.intercept))
	if err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	api.RegisterAgentService(server, s)
	if s.protector != nil {
		s.protector.Register(server)
	}
	return guest.Serve(context.Background(), server)
}

// userSpace mounts what the agent itself needs. Nothing here may be unique to
// one machine: a template is frozen right after it and cloned many times.
func userSpace() error {
	unix.Umask(0)
	// The initial ramfs cannot be the old root of pivot_root(2), so a tmpfs
	// takes its place first.
	const root = "/manis"
	if err := unix.Mkdir(root, 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make directory %s: %w", root, err)
	}
	for _, m := range []struct {
		fstype, target string
		flags          uintptr
		data           string
	}{
		{"tmpfs", "", unix.MS_NOSUID, "mode=0755,size=16m"},
		{"devtmpfs", "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, ""},
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"cgroup2", cgroupRoot, unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	} {
		if m.fstype != "tmpfs" && m.fstype != "cgroup2" {
			if err := unix.Mkdir(root+m.target, 0o755); err != nil {
				return fmt.Errorf("make directory %s: %w", m.target, err)
			}
		}
		if err := unix.Mount(m.fstype, root+m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s (is it in the guest's kernel?): %w", m.fstype, err)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	for _, dir := range []string{"/run", runDir, containersDir, sharesDir, volumesDir} {
		if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make directory %s: %w", dir, err)
		}
	}
	standardFiles()
	if err := keepFiles(); err != nil {
		return err
	}
	// Copies of deep trees hold a descriptor for each level.
	files := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	// Readers of /proc/PID of the agent's children, before they execute, need
	// CAP_SYS_PTRACE.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("protect the agent's memory: %w", err)
	}
	if err := writeFile("/proc/self/oom_score_adj", "-1000"); err != nil {
		return err
	}
	if err := setUpCgroups(); err != nil {
		return err
	}
	return linkUp("lo")
}

func keepFiles() error {
	for _, f := range []struct {
		fd    *int
		path  string
		flags int
	}{
		{&nullFile, "/dev/null", unix.O_RDWR},
		{&procDir, "/proc", unix.O_PATH | unix.O_DIRECTORY},
	} {
		var err error
		if *f.fd, err = unix.Open(f.path, f.flags|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open %s: %w", f.path, err)
		}
	}
	var err error
	if ownNamespaces, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return fmt.Errorf("open the agent's namespaces: %w", err)
	}
	return nil
}

// standardFiles makes sure that descriptors 0 to 2 are taken, so that none of
// the agent's later files gets their numbers.
func standardFiles() {
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDWR, 0)
		if err != nil {
			return
		}
		if fd > 2 {
			unix.Close(fd)
			return
		}
	}
}

// syncTimeout bounds the last sync: a filesystem that a container serves itself
// may never answer.
const syncTimeout = 20 * time.Second

// powerOff ends the machine. What containers wrote is synced first.
func powerOff() {
	writeFile(containersCgroup+"/cgroup.kill", "1")
	synced := make(chan struct{})
	go func() {
		unix.Sync()
		close(synced)
	}()
	select {
	case <-synced:
	case <-time.After(syncTimeout):
		complain("power off without a complete sync: a filesystem does not answer")
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// complain writes a line to the console: only for what the host cannot be told.
func complain(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "manis-agent: "+format+"\n", args...)
}

// monotonic is the guest's monotonic clock, nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
