package shim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	containerd "github.com/containerd/containerd/v2/pkg/shim"
	"google.golang.org/protobuf/proto"

	"manis/vmm/jail"
)

// maxBootstrap bounds what containerd says on standard input, bytes.
const maxBootstrap = 10 << 20

// call is how containerd calls the program.
type call struct {
	id, namespace, address string
	debug                  bool
	// modern containerds (2.3 and later) say it all on standard input, and are answered in kind.
	modern    bool
	socketDir string
}

func readCall(args []string, stdin io.Reader) (*call, error) {
	c := new(call)
	f := flag.NewFlagSet(Name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&c.id, "id", "", "")
	f.StringVar(&c.namespace, "namespace", "", "")
	f.StringVar(&c.address, "address", "", "")
	f.BoolVar(&c.debug, "debug", false, "")
	for _, unused := range []string{"publish-binary", "bundle", "socket", "debug-socket"} {
		f.String(unused, "", "")
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if c.id == "" || c.namespace == "" {
		return nil, errors.New("this program is started by containerd, not by hand: -id and -namespace are missing")
	}
	said, err := io.ReadAll(io.LimitReader(stdin, maxBootstrap))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	// Older ones send the runtime's options, which may happen to be readable as something else.
	params := new(bootstrap.BootstrapParams)
	if proto.Unmarshal(said, params) == nil && params.InstanceID == c.id && params.Namespace == c.namespace {
		c.modern, c.socketDir = true, params.GetSocketDir()
		if params.ContainerdGrpcAddress != "" {
			c.address = params.ContainerdGrpcAddress
		}
		c.debug = c.debug || params.GetLogLevel() <= bootstrap.LogLevel_LOG_LEVEL_DEBUG
	}
	return c, nil
}

// start starts the process that serves, in the bundle that is the working directory, unless the container belongs to
// a pod that has one, and says where it listens.
func start(ctx context.Context, args []string) error {
	c, err := readCall(args, os.Stdin)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, c.namespace)
	group, err := groupOf(c.id)
	if err != nil {
		return err
	}
	dir := c.socketDir
	if dir == "" {
		dir = filepath.Join(defaults.DefaultStateDir, "s")
	} else if err := linkSocketDir(dir); err != nil {
		return err
	}
	address, err := containerd.CreateSocketAddress(ctx, dir, c.address, group, false)
	if err != nil {
		return err
	}
	listener, err := listen(address)
	if err != nil {
		return err
	}
	if listener != nil {
		defer listener.Close()
		if err := c.begin(ctx, listener, address); err != nil {
			containerd.RemoveSocket(address)
			return err
		}
	}
	return c.answer(address)
}

// groupOf is the id of the pod that a container belongs to: its sandbox's, or its own.
func groupOf(id string) (string, error) {
	f, err := os.Open("config.json")
	if errors.Is(err, os.ErrNotExist) {
		return id, nil // a sandbox of the Sandbox API, which says later what it is to be
	}
	if err != nil {
		return "", fmt.Errorf("read the bundle: %w", err)
	}
	defer f.Close()
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(io.LimitReader(f, 16<<20)).Decode(&spec); err != nil {
		return "", fmt.Errorf("read the bundle: config.json: %w", err)
	}
	if sandbox := roleOf(spec.Annotations).sandbox; sandbox != "" {
		return sandbox, nil
	}
	return id, nil
}

// socketLink leads from a bundle to the directory of sockets, if that is not the default.
const socketLink = "s"

// linkSocketDir leaves word for the process that serves where its socket is: it removes it (containerd's package
// shim looks there).
func linkSocketDir(dir string) error {
	os.Remove(socketLink)
	if err := os.Symlink(dir, socketLink); err != nil {
		return fmt.Errorf("remember the directory of sockets: %w", err)
	}
	return nil
}

// listen makes the socket; nil is one at which somebody listens already.
func listen(address string) (*net.UnixListener, error) {
	l, err := containerd.NewSocket(address)
	if err != nil && containerd.SocketEaddrinuse(err) {
		if containerd.CanConnect(address) {
			return nil, nil
		}
		// What is left of a process that was killed.
		if err := containerd.RemoveSocket(address); err != nil {
			return nil, fmt.Errorf("remove a socket that nobody listens at: %w", err)
		}
		l, err = containerd.NewSocket(address)
	}
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// begin has a process serve: one that waits with a machine for the pod, or a new one.
func (c *call) begin(ctx context.Context, l *net.UnixListener, address string) error {
	socket, err := l.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	if c.address != "" {
		os.Setenv(addressVariable, c.address)
	}
	o := &order{ID: c.id, Namespace: c.namespace, Bundle: dir, Socket: address, Debug: c.debug, Environ: os.Environ()}
	pids, ok := claim(ctx, o, socket)
	if !ok {
		pid, err := spawn(o, socket)
		if err != nil {
			return err
		}
		pids = []int{pid}
	}
	for _, pid := range pids {
		// Who is short of memory shall find it before containerd. Some hosts do not permit it.
		containerd.AdjustOOMScore(pid)
	}
	return nil
}

// spawn starts the process that serves.
func spawn(o *order, socket *os.File) (pid int, err error) {
	args := []string{serveWord, "-namespace", o.Namespace, "-id", o.ID, "-socket", o.Socket}
	if o.Debug {
		args = append(args, "-debug")
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, args...)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Env = append(os.Environ(), "GOMAXPROCS=4")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := jail.StartKeeper(cmd.Start); err != nil {
		return 0, fmt.Errorf("start the shim: %w", err)
	}
	pid = cmd.Process.Pid
	return pid, cmd.Process.Release()
}

// answer tells containerd the address in the form that it understands.
func (c *call) answer(address string) error {
	if c.modern {
		result := &bootstrap.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}
		if err := result.AddExtension(mountsHere()); err != nil {
			return fmt.Errorf("tell containerd which mounts are made here: %w", err)
		}
		b, err := proto.Marshal(result)
		if err == nil {
			_, err = os.Stdout.Write(b)
		}
		return err
	}
	// containerd 1.6 and 1.7 look there when they have been restarted.
	if err := os.WriteFile("address", []byte(address), 0o600); err != nil {
		return fmt.Errorf("write the shim's address: %w", err)
	}
	_, err := io.WriteString(os.Stdout, address)
	return err
}
