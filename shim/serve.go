package shim

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	containerd "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"manis/monitor"
	"manis/place"
)

// serveWord is the first argument of the process that serves.
const serveWord = "serve"

// order says what a process is to serve: a new one, by its arguments, or one that has waited with a machine.
type order struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace"`
	// Bundle is the directory of the first container's bundle, and the process's working directory.
	Bundle string `json:"bundle"`
	// Socket is the address where it listens.
	Socket string `json:"socket"`
	Debug  bool   `json:"debug,omitempty"`
	// Environ is containerd's environment, which loggers get.
	Environ []string `json:"environ"`
}

// serve is the body of a new process, which listens on descriptor 3 and has its environment and working directory.
func serve(ctx context.Context, args []string) error {
	o := new(order)
	f := flag.NewFlagSet(Name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.ID, "id", "", "")
	f.StringVar(&o.Namespace, "namespace", "", "")
	f.StringVar(&o.Socket, "socket", "", "")
	f.BoolVar(&o.Debug, "debug", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	unix.CloseOnExec(3)
	file := os.NewFile(3, "listener")
	if words, err := openWords(); err == nil {
		unix.Dup3(int(words.Fd()), 2, 0)
		words.Close()
	}
	var err error
	if o.Bundle, err = os.Getwd(); err != nil {
		return err
	}
	return o.serve(ctx, file, nil)
}

// Adopt is the body of a process that has waited with a machine, from when a shim has claimed it: see monitor.PodOwner.
func Adopt(ctx context.Context, _ *place.Places, c *monitor.PodClaim, s *monitor.Standby) error {
	o := new(order)
	if err := json.Unmarshal(c.Order, o); err != nil {
		c.Listener.Close()
		return fmt.Errorf("read what the shim is to serve: %w", err)
	}
	os.Clearenv()
	for _, entry := range o.Environ {
		if name, value, ok := strings.Cut(entry, "="); ok {
			os.Setenv(name, value)
		}
	}
	if err := os.Chdir(o.Bundle); err != nil {
		c.Listener.Close()
		return fmt.Errorf("enter the bundle: %w", err)
	}
	return o.serve(ctx, c.Listener, s)
}

// openWords opens the FIFO of the bundle that is the working directory by which containerd has what shims say.
func openWords() (*os.File, error) {
	// Without waiting for a reader.
	fd, err := unix.Open("log", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "log", Err: err}
	}
	return os.NewFile(uintptr(fd), "log"), nil
}

// How long a shim waits for its first container, and for its end when that could not be made.
const (
	idleTime = 2 * time.Minute
	goneTime = 10 * time.Second
)

// serve serves a pod until its end. It owns the listener.
func (o *order) serve(ctx context.Context, file *os.File, waited *monitor.Standby) error {
	listener, err := net.FileListener(file)
	file.Close()
	if err != nil {
		return fmt.Errorf("listen for containerd: %w", err)
	}
	defer listener.Close()
	defer containerd.RemoveSocket(o.Socket)
	// There are many shims, and each has little to do.
	debug.SetGCPercent(40)
	if o.Debug {
		log.SetLevel("debug")
	}
	// containerd may be gone where this process writes to it.
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM, unix.SIGINT)
	publisher, err := containerd.NewPublisher(os.Getenv("TTRPC_ADDRESS"))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	ctx, end := shutdown.WithShutdown(namespaces.WithNamespace(ctx, o.Namespace))
	s, err := newService(ctx, publisher, end)
	if err != nil {
		return err
	}
	if s.notes, err = openNotebook(o.Bundle); err != nil {
		return err
	}
	s.waited = waited
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err == nil {
		err = s.RegisterTTRPC(server)
	}
	if err != nil {
		return fmt.Errorf("serve containerd: %w", err)
	}
	s.idle = time.AfterFunc(idleTime, s.endUnused)
	defer s.idle.Stop()
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	for {
		select {
		case <-terminate:
			end.Shutdown()
		case err := <-served:
			end.Shutdown()
			<-end.Done()
			return err
		case <-end.Done():
			return nil
		}
	}
}
