package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/bundle"
	"manis/cgroup"
	"manis/container"
	"manis/host/background"
	"manis/monitor"
	"manis/pod"
	"manis/vmm/jail"
)

// creation is what create and run are asked for.
type creation struct {
	bundle, pidFile, consoleSocket string
	preserveFDs                    int
	detach                         bool // run
	keep                           bool
	// Of restore: the directory of the checkpoint, and what is called when the container runs.
	image    string
	restored func()
}

func (o *creation) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.bundle, "bundle", "b", "", "the bundle's directory (default: the current one)")
	f.StringVar(&o.consoleSocket, "console-socket", "", "unix socket that receives the terminal's descriptor")
	f.StringVar(&o.pidFile, "pid-file", "", "file to write the process id to")
	f.IntVar(&o.preserveFDs, "preserve-fds", 0, "number of further descriptors for the container: none can cross into a virtual machine")
	f.Bool("no-pivot", false, "accepted: the guest always can pivot")
	f.Bool("no-new-keyring", false, "accepted: the guest has keyrings of its own")
}

func (a *app) createCommand() *cobra.Command {
	var o creation
	cmd := &cobra.Command{
		Use: "create [flags] ID", Short: "Make a container from a bundle; its process does not run yet", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.create(cmd.Context(), args[0], &o, false)
			if err != nil {
				return err
			}
			return c.proxy.Release()
		},
	}
	o.flags(cmd)
	return cmd
}

// created is a container that create has made.
type created struct {
	state *state
	pod   *pod.Client
	proxy *os.Process
}

// create makes a container. With foreground the caller's own terminal is the container's.
func (a *app) create(ctx context.Context, id string, o *creation, foreground bool) (_ *created, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if o.preserveFDs > 0 {
		return nil, errors.New("--preserve-fds: the container runs in a virtual machine, which open descriptors of the host cannot enter")
	}
	if o.bundle == "" {
		o.bundle = "."
	}
	b, err := bundle.Load(o.bundle)
	if err != nil {
		return nil, err
	}
	plan, err := b.Plan(bundle.Environment{})
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	terminal := b.Spec.Process.Terminal
	switch {
	case terminal && !foreground && o.consoleSocket == "":
		return nil, errors.New("cannot allocate tty if manis will detach without setting console socket")
	case o.consoleSocket != "" && (foreground || !terminal):
		return nil, errors.New("cannot use console socket if manis will not detach or allocate tty")
	}
	if err := a.open(); err != nil {
		return nil, err
	}
	if err := a.store.claim(id); err != nil {
		return nil, err
	}
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	undo = append(undo, func() { a.store.remove(id) })
	for _, w := range plan.Warnings {
		a.log("warning", w)
	}

	st := &state{
		Version: specs.Version, ID: id, Bundle: b.Dir, Rootfs: plan.Root, Created: time.Now().UTC(), Owner: owner(),
		Annotations: b.Spec.Annotations, Hooks: b.Spec.Hooks, Terminal: terminal,
	}
	netns, newNetns, err := networkOf(b.Spec)
	userNetwork := errors.Is(err, errHostNetwork) && b.Spec.Annotations[networkAnnotation] == "user"
	if word := b.Spec.Annotations[networkAnnotation]; word != "" && word != "user" {
		return nil, fmt.Errorf("config.json: annotation %s: %q is not one that there is: want user, which counts where the host's network is asked for", networkAnnotation, word)
	}
	if err != nil && !userNetwork {
		return nil, err
	}
	egress, allowed, err := a.permit(b, plan, id, userNetwork)
	if err != nil {
		return nil, err
	}
	var master, slave *os.File
	files := []*os.File{a.in, a.out, a.err}
	switch {
	case terminal && foreground:
		if slave, err = os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
			return nil, fmt.Errorf("the container wants a terminal, and the caller has none: %w", err)
		}
		files = []*os.File{slave}
	case terminal:
		if master, slave, err = openTerminal(b.Spec.Process.ConsoleSize); err != nil {
			return nil, err
		}
		defer master.Close()
		files = []*os.File{slave}
	}
	if slave != nil {
		defer slave.Close()
	}
	stand := pod.ProxyConfig{Netns: netns, NewNetns: newNetns, Contained: true, Args: b.Spec.Process.Args}
	// Who looks at the process that stands for the container's sees which namespaces it has of its own.
	if _, own := plan.Namespaces[specs.CgroupNamespace]; own && hostRoot() {
		stand.NewCgroupns = true
	}
	if _, own := plan.Namespaces[specs.UserNamespace]; own && hostRoot() {
		stand.UIDs, stand.GIDs = mappings(b.Spec.Linux.UIDMappings), mappings(b.Spec.Linux.GIDMappings)
	}
	if master != nil {
		stand.Terminal = slave
	}
	proxy, err := pod.StartProxy(stand)
	if err != nil {
		return nil, err
	}
	defer proxy.Socket.Close()
	undo = append(undo, func() { proxy.Process.Kill(); proxy.Process.Wait() })
	st.PID = proxy.Process.Pid
	if st.Birth, err = birthOf(st.PID); err != nil {
		return nil, fmt.Errorf("start the container's proxy: %w", err)
	}
	joined, err := a.findJoins(plan.Namespaces)
	if err != nil {
		return nil, err
	}
	if st.Pod = joined.pod; st.Pod == "" {
		st.Pod = pod.Dir(a.places, a.store.root, id)
	}
	var asked string
	if b.Spec.Linux != nil {
		asked = b.Spec.Linux.CgroupsPath
	}
	if st.Group, err = a.groupPath(id, asked); err != nil {
		return nil, err
	}
	// Before there is anything that would have to be found by it: from here on delete does, should this
	// process be killed.
	if err := a.store.save(st); err != nil {
		return nil, err
	}
	if joined.pod == "" {
		undo = append(undo, func() { os.RemoveAll(st.Pod) })
		if err := pod.MakeDir(st.Pod); err != nil {
			return nil, err
		}
	}
	group, err := makeGroup(st.Group, asked != "", st.PID)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { removeGroup(st.Group) })
	if hooks := st.Hooks; hooks != nil {
		creating := st.specState(specs.StateCreating)
		for _, h := range []struct {
			name   string
			hooks  []specs.Hook
			inside int
		}{{"prestart", hooks.Prestart, 0}, {"createRuntime", hooks.CreateRuntime, 0}, {"createContainer", hooks.CreateContainer, st.PID}} {
			if err := runHooks(ctx, h.name, h.hooks, creating, h.inside); err != nil {
				return nil, err
			}
		}
	}
	if err := proxy.Show(viewOf(plan, allowed)); err != nil {
		return nil, err
	}
	client := pod.At(pod.Socket(st.Pod))
	config, err := json.Marshal(b.Spec)
	if err != nil {
		return nil, err
	}
	request := &pod.CreateRequest{ID: id, Bundle: b.Dir, Config: config, Accel: b.Spec.Annotations["manis.accel"], Boot: b.Spec.Annotations["manis.boot"]}
	request.Image = o.image
	if group != nil && strings.HasPrefix(st.Group, "/") {
		request.Group = st.Group
	}
	request.JoinPID, request.JoinIPC, request.JoinUTS = joined.with[specs.PIDNamespace], joined.with[specs.IPCNamespace], joined.with[specs.UTSNamespace]
	if netns != "" || newNetns {
		request.Netns = fmt.Sprintf("/proc/%d/ns/net", st.PID)
	}
	request.UserNetwork, request.Egress, request.Allowed = userNetwork, egress, allowed
	request.Rows, request.Columns = sizeOf(slave)
	if joined.pod == "" {
		var size *container.Config
		if request.Image == "" && !request.UserNetwork && (request.Boot == "" || request.Boot == "auto") {
			size = &container.Config{Accel: request.Accel, Resources: plan.Resources}
		}
		if err := a.startPod(ctx, st.Pod, group, size); err != nil {
			return nil, err
		}
	}
	made, err := client.Create(ctx, request, append([]*os.File{proxy.Socket}, files...)...)
	if err != nil {
		return nil, err
	}
	defer made.Close()
	undo = append(undo, func() { client.Remove(context.WithoutCancel(ctx), id) })
	switch {
	case joined.pod != "":
		err = a.liftLimits(joined.pod)
	case group != nil && b.Spec.Linux != nil && b.Spec.Linux.Resources != nil:
		err = limitGroup(group, b.Spec.Annotations, b.Spec.Linux.Resources)
	}
	if err != nil && hostRoot() {
		return nil, err
	}
	if err := limitBlockIO(group, plan.BlockIO, joined.pod != ""); err != nil {
		return nil, fmt.Errorf("config.json: linux.resources.blockIO: %w", err)
	}
	if master != nil {
		if err := sendTerminal(ctx, o.consoleSocket, master); err != nil {
			return nil, err
		}
	}
	if o.pidFile != "" {
		if err := writeFile(o.pidFile, []byte(strconv.Itoa(st.PID)), 0o644); err != nil {
			return nil, fmt.Errorf("write the pid file: %w", err)
		}
	}
	made.Keep()
	return &created{st, client, proxy.Process}, nil
}

// viewOf is what a container sees of the host, as far as it was allowed, and where the guest mounts something.
func viewOf(plan *bundle.Plan, allowed *bundle.Allowed) *pod.View {
	v := &pod.View{Root: plan.Root, ReadOnly: plan.Create.Rootfs.Readonly}
	byName := make(map[string]pod.ViewBind)
	for i, b := range plan.Binds {
		bind := pod.ViewBind{Source: b.HostPath, ReadOnly: b.ReadOnly}
		if allowed != nil {
			bind.Origin = &allowed.Binds[i].Source
		}
		byName[b.Name] = bind
	}
	for _, m := range plan.Create.Mounts {
		if b, ok := byName[path.Base(m.Source)]; ok && m.Type == "share" {
			b.Destination = m.Destination
			v.Binds = append(v.Binds, b)
			continue
		}
		below := func(o *agent.Mount) bool { return o != m && strings.HasPrefix(m.Destination, o.Destination+"/") }
		if v.ReadOnly && !slices.ContainsFunc(plan.Create.Mounts, below) {
			v.Points = append(v.Points, m.Destination)
		}
	}
	return v
}

func mappings(list []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range list {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// networkOf says which network namespace a container is for: one by path, a new one, or the
// host's, which a machine cannot have.
func networkOf(spec *specs.Spec) (path string, fresh bool, err error) {
	if spec.Linux != nil {
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				if ns.Path != "" && same(ns.Path, "/proc/self/ns/net") {
					return "", false, hostNetwork("config.json names the network namespace of the host")
				}
				return ns.Path, ns.Path == "", nil
			}
		}
	}
	return "", false, hostNetwork("config.json names no network namespace")
}

// networkAnnotation says what a container has that asks for the host's network.
const networkAnnotation = "manis.network"

// errHostNetwork: the host's network was asked for.
var errHostNetwork = errors.New("the host's network was asked for")

func hostNetwork(how string) error {
	return fmt.Errorf("%w (%s): a container in a virtual machine cannot have the host's interfaces; give it a network namespace "+
		"and publish its ports, or the annotation %s=user, with which it reaches what the host does and nobody reaches it", errHostNetwork, how, networkAnnotation)
}

// same reports whether two paths lead to the same file.
func same(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// startPod starts the process of a pod, or claims one that waits with a machine of this size. A nil size claims
// none.
func (a *app) startPod(ctx context.Context, dir string, group *cgroup.Group, size *container.Config) error {
	listener, err := net.Listen("unix", pod.Socket(dir))
	if err != nil {
		return fmt.Errorf("listen for the pod: %w", err)
	}
	unixListener := listener.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false)
	defer listener.Close()
	file, err := unixListener.File()
	if err != nil {
		return err
	}
	defer file.Close()
	words, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("make the pod's log: %w", err)
	}
	defer words.Close()
	if size != nil {
		if pids, ok := monitor.ClaimPod(ctx, a.places, size, &monitor.PodClaim{Dir: dir, Listener: file}, words); ok {
			return joinGroup(group, pids)
		}
		defer monitor.MissedPod(a.places, size)
	}
	cmd := exec.Command("/proc/self/exe", pod.Word, dir)
	cmd.Args[0] = "manis"
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), a.places.Environ()...)
	if group != nil {
		cmd.Env = append(cmd.Env, background.GroupsVariable+"="+cgroup.Own())
	}
	cmd.Stderr = words
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := jail.StartKeeper(cmd.Start); err != nil {
		return fmt.Errorf("start the pod: %w", err)
	}
	// The machine will be there, too.
	if err := joinGroup(group, []int{cmd.Process.Pid}); err != nil {
		cmd.Process.Wait()
		return err
	}
	return cmd.Process.Release()
}

// joinGroup puts processes of a pod into its control group, if it has one. With an error they are killed.
func joinGroup(group *cgroup.Group, pids []int) error {
	if group == nil {
		return nil
	}
	for _, pid := range pids {
		if err := group.Join(pid); err != nil {
			for _, pid := range pids {
				unix.Kill(pid, unix.SIGKILL)
			}
			return fmt.Errorf("start the pod: %w", err)
		}
	}
	return nil
}

func sizeOf(terminal *os.File) (rows, columns uint32) {
	if terminal == nil {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return uint32(size.Row), uint32(size.Col)
}

func owner() string {
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}

// hostRoot reports whether this is root, and not that of a user namespace.
func hostRoot() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return os.Geteuid() == 0 && err == nil && len(f) == 3 && f[1] == "0"
}
