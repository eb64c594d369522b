package pod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A proxy and its pod speak through a socket pair of datagrams: the proxy sends one byte for
// each signal that it gets, the pod one byte in all, the exit code that the proxy ends with. Before,
// who has started the proxy may say once, in JSON, what it is to see of the host; the proxy answers with
// nothing but a zero, or with what went wrong.

// ProxyVariable is in the environment of a proxy: the program that starts proxies runs ProxyMain
// then. The arguments are those of the process that it stands for.
const ProxyVariable = "MANIS_PROXY"

// ProxyConfig says how a proxy is started.
type ProxyConfig struct {
	// Netns is the path of the network namespace to run in; empty: the caller's, or with
	// NewNetns one of its own.
	Netns    string
	NewNetns bool
	// Contained gives it its own UTS, IPC, PID and mount namespaces, by which others recognise
	// who belongs to a pod, and see what a container sees of the host.
	Contained bool
	// NewCgroupns gives it a cgroup namespace of its own, whose root is its group of that moment.
	NewCgroupns bool
	// UIDs and GIDs give it a user namespace of its own with these mappings, where the host
	// permits it: it is a mark only, what isolates is the machine.
	UIDs, GIDs []syscall.SysProcIDMap
	// Args are the arguments of the process that it stands for.
	Args []string
	// Terminal becomes its controlling terminal, whose changes of size it tells; nil: none.
	Terminal *os.File
}

// Proxy is a process on the host that stands for one in the guest.
type Proxy struct {
	Process *os.Process
	// mapped is set in a user namespace of its own.
	mapped bool
	// Socket is the pod's end. It is the caller's.
	Socket *os.File
}

// StartProxy starts a proxy. The program is this one, which runs ProxyMain when ProxyVariable is set.
func StartProxy(cfg ProxyConfig) (*Proxy, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the container's proxy: %w", os.NewSyscallError("socketpair", err))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "proxy"), os.NewFile(uintptr(fds[1]), "pod")
	defer theirs.Close()
	p := &Proxy{Socket: ours, mapped: len(cfg.UIDs) > 0 && len(cfg.GIDs) > 0}
	p.Process, err = startProxy(cfg, theirs, p.mapped)
	if err != nil && p.mapped {
		p.mapped = false
		p.Process, err = startProxy(cfg, theirs, false)
	}
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the container's proxy: %w", err)
	}
	return p, nil
}

func startProxy(cfg ProxyConfig, socket *os.File, mapped bool) (*os.Process, error) {
	cmd := exec.Command("/proc/self/exe")
	if len(cfg.Args) > 0 {
		cmd.Args = cfg.Args
	}
	cmd.Dir = "/"
	cmd.Env = []string{ProxyVariable + "=1"}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if cfg.Contained {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWNS
	}
	if cfg.NewNetns {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if cfg.NewCgroupns {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWCGROUP
	}
	if mapped {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = cfg.UIDs, cfg.GIDs
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{}
	}
	if cfg.Terminal != nil {
		cmd.Stdin = cfg.Terminal
		cmd.SysProcAttr.Setctty = true
	}
	start := cmd.Start
	if cfg.Netns != "" {
		start = func() error { return inNetns(cfg.Netns, cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	return cmd.Process, nil
}

// inNetns runs f on a thread in a network namespace.
func inNetns(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EINVAL) {
				err = errors.New("it is no network namespace")
			}
			result <- fmt.Errorf("join network namespace %s: %w", path, err)
			return
		}
		result <- f()
	}()
	return <-result
}

// ProxyMain is the body of a proxy, whose socket is on descriptor 3. It returns the exit code.
func ProxyMain() int {
	if os.Getenv(ProxyVariable) == exhausting {
		return exhaustMain()
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	socket := 3
	unix.CloseOnExec(socket)
	go func() {
		for s := range signals {
			n := s.(syscall.Signal)
			switch n {
			case unix.SIGURG, unix.SIGCHLD, unix.SIGPIPE:
				continue // the runtime's own
			}
			unix.Write(socket, []byte{byte(n)})
		}
	}()
	message, y := make([]byte, maxView), obeyer{proc: -1}
	for {
		n, err := unix.Read(socket, message)
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			return exitGone
		case n == 1:
			return int(message[0])
		default:
			answer := []byte{0}
			if err := y.obey(message[:n]); err != nil {
				answer = []byte(err.Error())
			}
			unix.Write(socket, answer)
		}
	}
}
