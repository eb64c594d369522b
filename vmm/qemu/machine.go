package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"manis/cgroup"
	"manis/vmm"
	"manis/vmm/checkpoint"
	"manis/vmm/jail"
)

const (
	defaultConsole = 64 << 10
	stderrLimit    = 8 << 10
)

// machine is one QEMU process.
type machine struct {
	config vmm.Config
	args   []string

	agent   net.Conn
	monitor *monitor
	process *jail.Process
	tpm     *softTPM // nil: the machine has none
	console *tail
	stderr  *tail
	drained sync.WaitGroup // the goroutines that read console and stderr
	dir     string         // made by us, removed by release
	conns   []net.Conn

	done chan struct{}
	// listening is closed when the guest has opened the agent's port, running when a frozen
	// guest goes on.
	listening, running chan struct{}

	mu     sync.Mutex
	begun  time.Time
	phases []vmm.Phase
	exit   vmm.Exit
	killed bool
	paused bool // as asked for
	// inserted counts the files that were put into slots; below says for a slot which
	// of them it holds.
	inserted int
	below    map[int]below
	nic      int // descriptor of the NIC's connection in QEMU
	disks    map[string]fileID
	// plugged counts the network interfaces that were plugged in; cards are those that are, by hardware address.
	plugged int
	cards   map[string]*card
	grown   grown
	// sets counts the sets of descriptors of disks that were plugged in.
	sets int
	// attaches counts the disks that were plugged in; attached are those that are, by serial.
	attaches int
	attached map[string]*attached
	seen     events
	facts    []vmm.Confinement
	once     sync.Once
}

// events is what QEMU said about the end.
type events struct {
	panicked bool
	shutdown string // the reason
	stopped  bool   // without having been asked to: QEMU cannot go on
	// listening and resumed: the events of these names came.
	listening, resumed bool
}

func (v *machine) mark(phase string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.phases = append(v.phases, vmm.Phase{Name: phase, Nanoseconds: int64(time.Since(v.begun))})
}

// spawn starts the process and everything that reads from it.
func (v *machine) spawn(in *Installation, files []*os.File) error {
	c := &v.config
	if c.RunDir == "" {
		dir, err := os.MkdirTemp("", "manis-vm-")
		if err != nil {
			return err
		}
		v.dir, c.RunDir = dir, dir
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer errW.Close()
	descriptors := []*os.File{fdNull: null, fdOut: errW, fdErr: errW}
	var conns [3]net.Conn
	for i := range conns {
		conn, theirs, err := pair()
		if err != nil {
			errR.Close()
			return err
		}
		defer theirs.Close()
		v.conns = append(v.conns, conn)
		conns[i] = conn
		descriptors = append(descriptors, theirs)
	}
	descriptors = append(descriptors, files...)
	first := negotiate
	switch {
	case c.Frozen != nil:
		first += thaw(fdFree + len(files) - 1)
	case c.Saved != nil:
		first = ""
	}
	if _, err := conns[0].Write([]byte(first)); err != nil {
		errR.Close()
		return err
	}
	j := v.jail(in, descriptors)
	if j.Calls, err = calls(); err != nil {
		errR.Close()
		return err
	}
	v.process, err = jail.Start(j)
	if err != nil {
		errR.Close()
		return startError(err)
	}
	v.mark("spawn")
	v.agent = conns[1]
	v.monitor = newMonitor(conns[0], v.on)
	if c.Saved != nil {
		v.monitor.adopt(c.Saved.Monitor)
	}
	limit := c.ConsoleLimit
	if limit == 0 {
		limit = defaultConsole
	}
	v.console, v.stderr = newTail(limit), newTail(stderrLimit)
	v.drained.Go(v.monitor.run)
	v.drained.Go(func() { v.console.drain(conns[2]) })
	v.drained.Go(func() {
		v.stderr.drain(errR)
		errR.Close()
	})
	go v.wait()
	return nil
}

func (v *machine) jail(in *Installation, descriptors []*os.File) jail.Config {
	c := &v.config
	j := jail.Config{
		Closure:     in.Closure,
		Args:        v.args,
		Descriptors: descriptors,
		Dir:         c.RunDir,
		KVM:         c.Accel == vmm.AccelKVM,
		Name:        c.RunDir,
		Group:       cgroup.Config{Path: c.Cgroup.Path, MemoryBytes: c.Cgroup.MemoryBytes, PIDs: c.Cgroup.PIDs},
		Open:        c.Unjailed,
	}
	if c.Unjailed {
		return j
	}
	if c.Saved != nil {
		j.Closure, j.Program = nil, resumerPath
		j.Files = append(j.Files,
			jail.File{Host: c.Saved.Resumer, Inside: resumerPath, Checked: c.Saved.ResumerFile},
			jail.File{Host: c.Saved.Pages, Inside: checkpoint.PagesPath, Checked: c.Saved.PagesFile})
		j.Shares = shares(c)
		return j
	}
	if c.Frozen != nil {
		j.Files = append(j.Files, jail.File{Host: c.Frozen.Memory, Inside: memoryPath, Lent: true})
	} else {
		j.Files = append(j.Files, jail.File{Host: c.Kernel, Inside: kernelPath})
		if c.Initrd != "" {
			j.Files = append(j.Files, jail.File{Host: c.Initrd, Inside: initrdPath})
		}
		if c.MemoryFile != "" {
			j.Files = append(j.Files, jail.File{Host: c.MemoryFile, Inside: memoryPath, Writable: true})
		}
	}
	if c.Firmware != "" {
		j.Files = append(j.Files, jail.File{Host: c.Firmware, Inside: firmwareFile})
	}
	for name, path := range in.Firmware {
		j.Files = append(j.Files, jail.File{Host: path, Inside: firmwareDir + "/" + name})
	}
	j.Shares = shares(c)
	return j
}

func shares(c *vmm.Config) []jail.Share {
	var all []jail.Share
	for _, s := range c.Shares {
		share := jail.Share{Name: s.Tag, Grows: s.Grows}
		for _, e := range s.Entries {
			share.Entries = append(share.Entries, entry(e))
		}
		all = append(all, share)
	}
	return all
}

// greet waits until QEMU has built the machine.
func (v *machine) greet(ctx context.Context) error {
	select {
	case <-v.monitor.greeted:
		v.mark("machine")
		// It has opened all that it will ever open.
		v.process.StopLending()
	case <-v.done:
		return fmt.Errorf("%w: %s", vmm.ErrRejected, v.Exit().Detail)
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU: %w", ctx.Err())
	}
	if err := v.verify(); err != nil || v.config.Frozen == nil {
		return err
	}
	return v.thawed(ctx)
}

// thawed waits until a frozen or saved machine goes on.
func (v *machine) thawed(ctx context.Context) error {
	select {
	case <-v.running:
		v.mark("thaw")
		return nil
	case <-v.monitor.done:
		select {
		case <-v.done:
			return fmt.Errorf("%w: %s", vmm.ErrRejected, v.Exit().Detail)
		case <-time.After(endTime):
			return fmt.Errorf("%w: QEMU does not go on with the frozen machine: %w", vmm.ErrRejected, v.monitor.err)
		}
	case <-ctx.Done():
		return fmt.Errorf("wait for the frozen machine: %w", ctx.Err())
	}
}

// endTime is how long it may take to hear of the end of a process that has ended.
const endTime = time.Second

// verify reads back what confines QEMU, now that it has installed its own
// filter and before the guest has got far.
func (v *machine) verify() error {
	facts, err := v.process.Verify()
	v.mu.Lock()
	v.facts = confinements(facts)
	v.mu.Unlock()
	if err != nil {
		select {
		case <-v.done: // nothing could be read because it has ended
			return fmt.Errorf("%w: %s", vmm.ErrRejected, v.Exit().Detail)
		case <-time.After(endTime):
			return fmt.Errorf("%w: %w", vmm.ErrNotJailed, err)
		}
	}
	v.mark("verify")
	return nil
}

// on remembers an event; it runs on the monitor's goroutine.
func (v *machine) on(e event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e.Event {
	case "GUEST_PANICKED":
		v.seen.panicked = true
	case "SHUTDOWN":
		v.seen.shutdown = e.Data.Reason
	case "VSERPORT_CHANGE":
		// It comes as often as the guest likes.
		if e.Data.Open && !v.seen.listening {
			v.seen.listening = true
			close(v.listening)
		}
	case "DEVICE_DELETED":
		v.deleted(e.Data.Device)
	case "RESUME":
		if !v.seen.resumed {
			v.seen.resumed = true
			close(v.running)
		}
	case "STOP":
		// A guest that stands still for good, after an internal error of KVM
		// for instance, is worse than one that has ended.
		if !v.paused && !v.seen.panicked && v.seen.shutdown == "" {
			v.seen.stopped = true
			v.process.Signal(unix.SIGKILL)
		}
	}
}

// wait is the goroutine that owns the process: it ends when the process was
// reaped and all it said was read.
func (v *machine) wait() {
	status := v.process.Status()
	v.drained.Wait()
	v.mu.Lock()
	v.exit = v.verdict(status)
	v.mu.Unlock()
	close(v.done)
}

// verdict says why the process ended; v.mu is held.
func (v *machine) verdict(status unix.WaitStatus) vmm.Exit {
	said := readable(v.stderr.bytes())
	with := func(s string) string {
		if said != "" {
			s += ": " + said
		}
		return s
	}
	switch {
	case v.seen.panicked || v.seen.shutdown == "guest-panic":
		return vmm.Exit{Reason: vmm.Panic, Detail: "the guest's kernel panicked" + panicLine(v.console.bytes())}
	case v.seen.shutdown == "guest-shutdown":
		return vmm.Exit{Reason: vmm.PowerOff, Detail: "the guest switched itself off"}
	case v.seen.shutdown == "guest-reset":
		return vmm.Exit{Reason: vmm.Reset, Detail: "the guest rebooted"}
	case v.seen.stopped:
		return vmm.Exit{Reason: vmm.Failed, Detail: with("QEMU could not go on with the guest")}
	case v.killed:
		return vmm.Exit{Reason: vmm.Killed, Detail: "killed by its owner"}
	case v.seen.shutdown == "host-qmp-quit", v.seen.shutdown == "host-signal":
		return vmm.Exit{Reason: vmm.Killed, Detail: "QEMU was told to end"}
	case status.Signaled() && status.Signal() == unix.SIGSYS:
		return vmm.Exit{Reason: vmm.Failed, Detail: with("QEMU attempted a forbidden system call")}
	case status.Signaled() && status.Signal() == unix.SIGKILL:
		return vmm.Exit{Reason: vmm.Killed, Detail: with("QEMU was killed from outside (by the kernel, if memory ran out)")}
	case status.Signaled():
		return vmm.Exit{Reason: vmm.Failed, Detail: with(fmt.Sprintf("QEMU died of signal %d (%s)", status.Signal(), status.Signal()))}
	default:
		return vmm.Exit{Reason: vmm.Failed, Detail: with(fmt.Sprintf("QEMU ended with status %d", status.ExitStatus()))}
	}
}

// panicLine finds in a console what the kernel said when it gave up.
func panicLine(console []byte) string {
	const mark = "Kernel panic - not syncing: "
	_, after, ok := strings.Cut(string(console), mark)
	if !ok {
		return ""
	}
	line, _, _ := strings.Cut(after, "\n")
	return ": " + printable(strings.TrimSpace(line))
}

func (v *machine) Agent() net.Conn { return v.agent }

func (v *machine) Console() []byte { return v.console.bytes() }

func (v *machine) Done() <-chan struct{} { return v.done }

func (v *machine) Exit() vmm.Exit {
	select {
	case <-v.done:
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.exit
	default:
		return vmm.Exit{}
	}
}

func (v *machine) Pause(ctx context.Context) error {
	v.mu.Lock()
	v.paused = true
	v.mu.Unlock()
	return v.execute(ctx, "stop", nil, nil)
}

func (v *machine) Resume(ctx context.Context) error {
	if err := v.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	v.mu.Lock()
	v.paused = false
	v.mu.Unlock()
	return nil
}

func (v *machine) execute(ctx context.Context, command string, arguments, result any) error {
	err := v.monitor.execute(ctx, command, arguments, result)
	if err == nil {
		return nil
	}
	select {
	case <-v.monitor.done:
		return fmt.Errorf("%w: %w", vmm.ErrEnded, err)
	default:
		return err
	}
}

func (v *machine) Kill() error {
	v.mu.Lock()
	v.killed = true
	v.mu.Unlock()
	if err := v.process.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-v.done
	return v.release()
}

// release frees what belongs to the VM after its process has ended, or was
// never started.
func (v *machine) release() (err error) {
	v.once.Do(func() {
		if v.process != nil {
			err = v.process.Release()
		}
		if v.tpm != nil {
			err = errors.Join(err, v.tpm.end())
		}
		for _, conn := range v.conns {
			conn.Close()
		}
		if v.dir != "" {
			err = errors.Join(err, os.Remove(v.dir))
		}
	})
	return err
}

func (v *machine) Memory() (vmm.Memory, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", v.process.PID))
	if err != nil {
		select {
		case <-v.done:
			return vmm.Memory{}, vmm.ErrEnded
		default:
			return vmm.Memory{}, fmt.Errorf("read QEMU's memory: %w", err)
		}
	}
	defer f.Close()
	ram := uint64(0)
	if v.config.Saved != nil {
		ram = v.config.MemoryBytes
	}
	return readMaps(f, ram)
}

func (v *machine) Info() vmm.Info {
	v.mu.Lock()
	defer v.mu.Unlock()
	return vmm.Info{
		Driver:      "qemu",
		Version:     v.monitor.version,
		PID:         v.process.PID,
		Accel:       v.config.Accel,
		Args:        v.args,
		MemoryBytes: v.config.MemoryBytes + v.grown.added,
		VCPUs:       v.vcpus(),
		Jail:        slices.Clone(v.facts),
		Start:       slices.Clone(v.phases),
	}
}

func entry(e vmm.ShareEntry) jail.Entry {
	own := jail.Entry{Name: e.Name, Host: e.HostPath, Opened: e.Opened, ReadOnly: e.ReadOnly, File: e.File, WritableBelow: e.WritableBelow, Follows: e.Follows}
	if e.IDs != nil {
		own.IDs = &jail.IDMap{Users: ranges(e.IDs.Users), Groups: ranges(e.IDs.Groups), Below: e.IDs.Below}
	}
	return own
}

func ranges(list []vmm.IDRange) []jail.IDRange {
	var own []jail.IDRange
	for _, r := range list {
		own = append(own, jail.IDRange(r))
	}
	return own
}

// Share adds an entry to a share.
func (v *machine) Share(ctx context.Context, tag string, e vmm.ShareEntry) error {
	if !slices.ContainsFunc(v.config.Shares, func(s vmm.Share) bool { return s.Tag == tag && s.Grows }) {
		return fmt.Errorf("%w: the machine has no share %q that grows", vmm.ErrConfig, tag)
	}
	if err := errors.Join(e.Check(), ctx.Err()); err != nil {
		return fmt.Errorf("%w: share %s: %w", vmm.ErrConfig, tag, err)
	}
	if err := exists(e); err != nil {
		return fmt.Errorf("%w: share %s: %w", vmm.ErrConfig, tag, err)
	}
	return v.process.Add(tag, entry(e))
}

// Unshare takes an entry away from a share.
func (v *machine) Unshare(ctx context.Context, tag string, e vmm.ShareEntry) error {
	if err := errors.Join(e.Check(), ctx.Err()); err != nil {
		return fmt.Errorf("%w: share %s: %w", vmm.ErrConfig, tag, err)
	}
	select {
	case <-v.Done():
		return nil // it has taken everything with it
	default:
	}
	return v.process.Remove(tag, entry(e))
}
