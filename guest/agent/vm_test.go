package agent_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "manis/api/agent"
	"manis/api/wire"
	"manis/guest/initramfs"
)

// requestTimeout bounds each request of the tests.
const requestTimeout = 60 * time.Second

// machine is a booted virtual machine with the agent in it.
type machine struct {
	host    *wire.Client
	agent   api.AgentService
	qemu    *exec.Cmd
	gone    chan struct{} // closed when QEMU has ended
	console string        // file
	started time.Time
}

// disk is a file that the machine sees as a virtio disk.
type disk struct {
	serial   string
	file     string
	readonly bool
}

// hardware is what a test's machine has.
type hardware struct {
	memory string // MiB
	disks  []disk
	// shares are directories by 9p tag.
	shares map[string]string
	// cards are the hardware addresses of its network cards.
	cards  []string
	append string
}

// kernelImage returns the guest's kernel or skips.
func kernelImage(t testing.TB) string {
	t.Helper()
	for _, name := range []string{os.Getenv("MANIS_KERNEL"), "../image/vmlinuz"} {
		if _, err := os.Stat(name); name != "" && err == nil {
			return name
		}
	}
	t.Skip("no guest kernel at guest/image/vmlinuz (guest/kernel builds it)")
	return ""
}

func need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "manis-agent-test")
	if err != nil {
		return "", err
	}
	agent := filepath.Join(dir, "manis-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "manis/cmd/manis-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build agent: %v\n%s", err, out)
	}
	b, err := os.ReadFile(agent)
	if err != nil {
		return dir, err
	}
	var archive bytes.Buffer
	if err := initramfs.Write(&archive, b); err != nil {
		return dir, err
	}
	return dir, os.WriteFile(filepath.Join(dir, "initramfs"), archive.Bytes(), 0o644)
})

func TestMain(m *testing.M) {
	code := m.Run()
	shared.stop()
	if dir, _ := buildOnce(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// boot starts a machine. It does not wait for the agent: requests do.
func boot(t testing.TB, hw hardware) *machine {
	t.Helper()
	kernel := kernelImage(t)
	need(t, "qemu-system-x86_64")
	dir, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	m, err := start(kernel, filepath.Join(dir, "initramfs"), hw)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func start(kernel, initrd string, hw hardware) (*machine, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		return nil, err
	}
	console, err := os.CreateTemp("", "manis-console")
	if err != nil {
		return nil, err
	}
	if hw.memory == "" {
		hw.memory = "256"
	}
	cmdline := "console=ttyS0 quiet panic=-1 reboot=t no_timer_check " + clock() + " " + hw.append
	args := []string{
		"-machine", "q35,accel=tcg", "-cpu", "max", "-m", hw.memory, "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", cmdline,
		"-chardev", "file,id=console,path=" + console.Name(), "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=3",
		"-device", "virtserialport,chardev=agent,name=manis.agent.0",
	}
	console.Close()
	for i, d := range hw.disks {
		ro := "off"
		if d.readonly {
			ro = "on"
		}
		args = append(args,
			"-blockdev", fmt.Sprintf("driver=raw,node-name=d%d,read-only=%s,file.driver=file,file.filename=%s", i, ro, d.file),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,serial=%s", i, d.serial))
	}
	for tag, dir := range hw.shares {
		args = append(args, "-virtfs", "local,path="+dir+",mount_tag="+tag+",security_model=none,multidevs=remap")
	}
	for i, mac := range hw.cards {
		args = append(args, "-netdev", fmt.Sprintf("hubport,id=n%d,hubid=%d", i, i), "-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=%s", i, mac))
	}
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	m := &machine{qemu: cmd, gone: make(chan struct{}), console: console.Name(), started: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(m.gone)
		cmd.Wait()
	}()
	if m.host, err = wire.NewClient(conn); err != nil {
		m.stop()
		return nil, err
	}
	m.agent = api.NewAgentClient(m.host.Control())
	return m, nil
}

// clock spares the guest the calibration of its timers, which hangs on a busy host.
func clock() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	m := regexp.MustCompile(`cpu MHz\s*:\s*([0-9.]+)`).FindSubmatch(b)
	if m == nil {
		return ""
	}
	mhz, _ := strconv.ParseFloat(string(m[1]), 64)
	khz := int(mhz * 1000)
	return fmt.Sprintf("tsc_early_khz=%d lpj=%d", khz, khz*4)
}

// stop ends the machine at once.
func (m *machine) stop() {
	if m == nil {
		return
	}
	if m.host != nil {
		m.host.Close()
	}
	m.qemu.Process.Kill()
	<-m.gone
	os.Remove(m.console)
}

// log is what the machine wrote to its console.
func (m *machine) log() string {
	b, _ := os.ReadFile(m.console)
	return string(b)
}

func setupRequest() *api.SetupRequest {
	seed := make([]byte, 64)
	rand.Read(seed)
	return &api.SetupRequest{
		Version: wire.Version, Entropy: seed, ClockUnixNs: time.Now().UnixNano(), Hostname: "sandbox",
	}
}

// theNetwork is that of theMachine.
func theNetwork() *api.Network {
	return &api.Network{
		Device: "eth0", Mac: "02:00:00:00:12:34", Mtu: 1400,
		Addresses: []string{"10.9.8.7/24", "fd00::7/64"}, Gateways: []string{"10.9.8.1", "fd00::1"},
		Routes: []*api.Route{{Destination: "172.16.0.0/12", Gateway: "10.9.8.2"}},
	}
}

// setUp makes the first request.
func (m *machine) setUp(t testing.TB, r *api.SetupRequest) *api.SetupResponse {
	t.Helper()
	reply, err := m.agent.Setup(deadline(t), r)
	if err != nil {
		t.Fatalf("Setup: %v\nconsole:\n%s", err, m.log())
	}
	return reply
}

// deadline is a context that ends with the test or when a request hangs.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	t.Cleanup(cancel)
	return ctx
}

// shared is the machine of all tests that do not need their own.
var shared sharedMachine

type sharedMachine struct {
	once sync.Once
	m    *machine
	dir  string
	next int
}

func (s *sharedMachine) stop() {
	s.m.stop()
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// container is one container of a test.
type container struct {
	*machine
	t  testing.TB
	id string
}

// run is a finished process.
type run struct {
	stdout, stderr string
	*api.WaitResponse
}

// process is a running one.
type process struct {
	c              *container
	exec           string
	stdin          net.Conn
	stdout, stderr *collector
}

// collector reads a stream to its end.
type collector struct {
	conn net.Conn
	done chan struct{}
	buf  bytes.Buffer
	mu   sync.Mutex
	more *sync.Cond
}

func collect(conn net.Conn) *collector {
	c := &collector{conn: conn, done: make(chan struct{})}
	c.more = sync.NewCond(&c.mu)
	go func() {
		defer close(c.done)
		b := make([]byte, 64<<10)
		for {
			n, err := conn.Read(b)
			c.mu.Lock()
			c.buf.Write(b[:n])
			c.more.Broadcast()
			c.mu.Unlock()
			if err != nil {
				conn.Close()
				return
			}
		}
	}()
	return c
}

// String waits for the end.
func (c *collector) String() string {
	<-c.done
	return c.buf.String()
}

// await waits until the output holds text.
func (c *collector) await(t testing.TB, text string) {
	t.Helper()
	timer := time.AfterFunc(requestTimeout, c.more.Broadcast)
	defer timer.Stop()
	start := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !strings.Contains(c.buf.String(), text) {
		select {
		case <-c.done:
			t.Fatalf("output ended without %q: %q", text, c.buf.String())
		default:
		}
		if time.Since(start) > requestTimeout {
			t.Fatalf("output %q: want %q", c.buf.String(), text)
		}
		c.more.Wait()
	}
}

// dockerCapabilities are what docker gives a container.
var dockerCapabilities = strings.Fields("CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE")

func defaultCapabilities() *api.Capabilities {
	return &api.Capabilities{Bounding: dockerCapabilities, Effective: dockerCapabilities, Permitted: dockerCapabilities}
}

// command is a process with docker's defaults.
func command(args ...string) *api.Process {
	return &api.Process{
		Args: args, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Cwd: "/", Capabilities: defaultCapabilities(),
	}
}

func sh(script string) *api.Process { return command("sh", "-c", script) }

// open gives a process its streams.
func (c *container) open(p *api.Process, exec string) *process {
	c.t.Helper()
	proc := &process{c: c, exec: exec}
	stream := func() (net.Conn, uint64) {
		conn, token, err := c.host.Stream()
		if err != nil {
			c.t.Fatal(err)
		}
		return conn, token
	}
	proc.stdin, p.Stdin = stream()
	if p.Terminal {
		p.Stdout = p.Stdin
		proc.stdout = collect(proc.stdin)
		return proc
	}
	// A test that wants a stream for itself has named it before.
	if p.Stdout == 0 {
		var out net.Conn
		out, p.Stdout = stream()
		proc.stdout = collect(out)
	}
	var err net.Conn
	err, p.Stderr = stream()
	proc.stderr = collect(err)
	return proc
}

// wait waits for the end of a process.
func (p *process) wait() run {
	p.c.t.Helper()
	reply, err := p.c.agent.Wait(deadline(p.c.t), &api.WaitRequest{Id: p.c.id, ExecId: p.exec})
	if err != nil {
		p.c.t.Fatalf("Wait: %v\nconsole:\n%s", err, p.c.log())
	}
	p.stdin.Close()
	r := run{WaitResponse: reply}
	if p.stdout != nil {
		r.stdout = p.stdout.String()
	}
	if p.stderr != nil {
		r.stderr = p.stderr.String()
	}
	return r
}

// create makes a container with p as its first process.
func (m *machine) create(t testing.TB, p *api.Process, change func(r *api.CreateContainerRequest)) (*container, *process, error) {
	t.Helper()
	shared.next++
	c := &container{machine: m, t: t, id: fmt.Sprintf("c%d", shared.next)}
	r := &api.CreateContainerRequest{
		Id: c.id, Rootfs: &api.RootFS{Disk: "root"}, Process: p, Hostname: "box",
		MaskedPaths:   []string{"/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/acpi", "/proc/scsi"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
	proc := c.open(p, "")
	if change != nil {
		change(r)
	}
	if _, err := m.agent.CreateContainer(deadline(t), r); err != nil {
		proc.stdin.Close()
		return c, proc, err
	}
	t.Cleanup(func() {
		select {
		case <-m.gone:
			return
		default:
		}
		if _, err := m.agent.RemoveContainer(deadline(t), &api.ContainerRef{Id: c.id}); err != nil && !strings.Contains(err.Error(), "no such container") {
			t.Errorf("RemoveContainer: %v\nconsole:\n%s", err, m.log())
		}
	})
	return c, proc, nil
}

// start creates and starts.
func (m *machine) start(t testing.TB, p *api.Process, change func(r *api.CreateContainerRequest)) (*container, *process) {
	t.Helper()
	c, proc, err := m.create(t, p, change)
	if err != nil {
		t.Fatalf("CreateContainer: %v\nconsole:\n%s", err, m.log())
	}
	if _, err := m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: c.id}); err != nil {
		t.Fatalf("StartContainer: %v\nconsole:\n%s", err, m.log())
	}
	return c, proc
}

// run runs a container to its end.
func (m *machine) run(t testing.TB, p *api.Process, change func(r *api.CreateContainerRequest)) run {
	t.Helper()
	_, proc := m.start(t, p, change)
	proc.stdin.Close()
	return proc.wait()
}

// startExec starts a further process.
func (c *container) startExec(p *api.Process) (*process, error) {
	c.t.Helper()
	shared.next++
	proc := c.open(p, fmt.Sprintf("e%d", shared.next))
	_, err := c.agent.Exec(deadline(c.t), &api.ExecRequest{Id: c.id, ExecId: proc.exec, Process: p})
	if err != nil {
		proc.stdin.Close()
	}
	return proc, err
}

// exec runs a further process to its end.
func (c *container) exec(p *api.Process) run {
	c.t.Helper()
	proc, err := c.startExec(p)
	if err != nil {
		c.t.Fatalf("Exec: %v\nconsole:\n%s", err, c.log())
	}
	proc.stdin.Close()
	return proc.wait()
}

// busyboxTree makes a root filesystem out of the host's static busybox.
func busyboxTree(t testing.TB, dir string) {
	t.Helper()
	need(t, "busybox", "mkfs.erofs")
	source, _ := exec.LookPath("busybox")
	for _, d := range []string{"bin", "etc", "tmp", "root", "home/user", "usr/bin", "data/sub"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		os.Chmod(filepath.Join(dir, name), mode)
	}
	write("bin/busybox", string(b), 0o755)
	out, err := exec.Command(source, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet != "busybox" {
			os.Symlink("busybox", filepath.Join(dir, "bin", applet))
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:\nuser:x:1000:\nwheel:x:10:user\naudio:x:29:user,root\n", 0o644)
	write("data/file", "from the image\n", 0o640)
	write("data/sub/other", "deeper\n", 0o600)
	write("bin/badinterp", "#!/nonexistent/interpreter\n", 0o755)
	write("bin/badformat", "\x7fELF nonsense", 0o755)
	write("bin/notexec", "#!/bin/sh\n", 0o644)
	os.Link(filepath.Join(dir, "data/file"), filepath.Join(dir, "data/hard"))
	os.Lchown(filepath.Join(dir, "data/file"), 1000, 29)
	unix.Setxattr(filepath.Join(dir, "data/file"), "user.colour", []byte("green"), 0)
	// Links that lead nowhere good if they were followed in the agent's root.
	os.Symlink("/", filepath.Join(dir, "escape"))
	os.Symlink("../../../../../../run/manis", filepath.Join(dir, "up"))
	os.Symlink("/var/lib/later", filepath.Join(dir, "dangling"))
	os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky)
}

func mkerofs(t testing.TB, dir, file string) {
	t.Helper()
	if out, err := exec.Command("mkfs.erofs", "--quiet", "-T0", file, dir).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
}

func mkext4(t testing.TB, file string, size int64) {
	t.Helper()
	need(t, "mkfs.ext4")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", file).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
}

// theMachine returns the shared machine with everything that tests use.
func theMachine(t testing.TB) *machine {
	t.Helper()
	kernelImage(t)
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "manis-agent-vm")
		if err != nil {
			t.Fatal(err)
		}
		shared.dir = dir
		tree := filepath.Join(dir, "tree")
		busyboxTree(t, tree)
		mkerofs(t, tree, filepath.Join(dir, "root.erofs"))
		mkext4(t, filepath.Join(dir, "scratch"), 64<<20)
		mkext4(t, filepath.Join(dir, "volume"), 64<<20)
		share := filepath.Join(dir, "share")
		os.MkdirAll(filepath.Join(share, "inner"), 0o755)
		os.WriteFile(filepath.Join(share, "single"), []byte("one file\n"), 0o644)
		os.Symlink("/etc/passwd", filepath.Join(share, "escape"))
		busyboxTree(t, filepath.Join(share, "rootfs"))
		m := boot(t, hardware{
			disks: []disk{
				{serial: "root", file: filepath.Join(dir, "root.erofs"), readonly: true},
				{serial: "scratch", file: filepath.Join(dir, "scratch")},
				{serial: "volume", file: filepath.Join(dir, "volume")},
			},
			shares: map[string]string{"host": share},
			cards:  []string{"52:54:00:12:34:56"},
		})
		shared.m = m
		r := setupRequest()
		r.Network = theNetwork()
		r.Shares = []*api.Share{{Tag: "host"}}
		r.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
		m.setUp(t, r)
	})
	if shared.m == nil {
		t.Fatal("the shared machine did not start")
	}
	return shared.m
}
