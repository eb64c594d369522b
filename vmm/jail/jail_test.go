package jail_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"manis/cgroup"
	"manis/vmm/jail"
	"manis/vmm/jail/jailtest"
	"manis/vmm/vmmtest"
)

// probeArg makes the test binary, which is static, the prisoner.
const probeArg = "probe-the-jail"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == probeArg {
		probe()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == borrowArg {
		borrow()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == claimArg {
		claimAndWait()
		return
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case keeperArg:
			keeper()
			return
		case executeArg:
			executeAnother()
			return
		case saidArg:
			fmt.Print("executed")
			return
		case moveArg:
			moveFile()
			return
		}
	}
	if len(os.Args) > 1 && os.Args[1] == serveArg {
		serveFiles()
		return
	}
	os.Exit(vmmtest.Main(m))
}

// probe tries to do harm and prints what happened as a JSON object of
// attempt and outcome.
func probe() {
	found := map[string]string{}
	try := func(name string, err error) {
		found[name] = "done"
		if err != nil {
			var errno syscall.Errno
			if errors.As(err, &errno) {
				found[name] = unix.ErrnoName(errno)
			} else {
				found[name] = err.Error()
			}
		}
	}
	list := func(dir string) string {
		var names []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			return "error"
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	read := func(path string) error {
		_, err := os.ReadFile(path)
		return err
	}
	found["root"] = list("/")
	found["pid"] = strconv.Itoa(os.Getpid())
	found["uid"] = strconv.Itoa(os.Getuid())
	found["environment"] = strings.Join(os.Environ(), " ")
	found["host name"], _ = func() (string, error) {
		var u unix.Utsname
		err := unix.Uname(&u)
		return unix.ByteSliceToString(u.Nodename[:]), err
	}()
	var open []string
	for fd := range 200 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			// The Go runtime's own poller comes after what was handed in.
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != 0 {
				open = append(open, strconv.Itoa(fd))
			}
		}
	}
	found["descriptors"] = strings.Join(open, " ")

	try("read passwd", read("/etc/passwd"))
	try("read through parent", read("/../../etc/passwd"))
	try("read the program", read("/program"))
	try("write in root", os.WriteFile("/new", nil, 0o600))
	try("write a library", os.WriteFile("/lib/new", nil, 0o600))
	try("change the program", os.WriteFile("/program", nil, 0o600))
	try("remove the program", os.Remove("/program"))
	try("list processes", func() error { _, err := os.ReadDir("/proc"); return err }())
	for name, domain := range map[string]int{"inet": unix.AF_INET, "unix": unix.AF_UNIX, "vsock": unix.AF_VSOCK, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET} {
		_, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
		try("socket "+name, err)
	}
	try("kill everybody", unix.Kill(-1, unix.SIGKILL))
	// The host's PIDs mean nothing here; the parent's is handed in as an argument.
	parent, _ := strconv.Atoi(os.Args[2])
	try("kill the parent", unix.Kill(parent, 0))
	try("trace", unix.PtraceAttach(parent))
	try("mount", unix.Mount("tmpfs", "/lib", "tmpfs", 0, ""))
	try("unmount", unix.Unmount("/program", unix.MNT_DETACH))
	try("remount", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	try("chroot", unix.Chroot("/lib"))
	// Through the system call: package syscall would change every thread, and
	// panic where they do not agree.
	for name, nr := range map[string]uintptr{"setuid": unix.SYS_SETUID, "setgid": unix.SYS_SETGID} {
		_, _, errno := unix.RawSyscall(nr, 0, 0, 0)
		try(name, orNil(errno))
	}
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0)
	try("clone a namespace", orNil(errno))
	_, _, errno = unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	try("clone3", orNil(errno))
	_, _, errno = unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
	try("io_uring", orNil(errno))
	_, _, errno = unix.RawSyscall(unix.SYS_BPF, 0, 0, 0)
	try("bpf", orNil(errno))
	_, _, errno = unix.RawSyscall(unix.SYS_KEYCTL, 0, 0, 0)
	try("keyring", orNil(errno))
	try("raise limit", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}))
	try("execute another", unix.Exec("/etc/../usr/bin/sh", []string{"sh"}, nil))
	try("device", unix.Mknod("/lib/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	var caps [2]unix.CapUserData
	unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0])
	found["capabilities"] = fmt.Sprintf("%x", uint64(caps[0].Permitted)|uint64(caps[1].Permitted)<<32)
	nnp, _, _ := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0)
	found["no new privileges"] = strconv.Itoa(int(nnp))

	found["shares"] = list("/shares/s")
	try("write share", os.WriteFile("/shares/s/rw/new", []byte("x"), 0o644))
	try("write read-only share", os.WriteFile("/shares/s/ro/new", []byte("x"), 0o644))
	try("make share writable", unix.Mount("", "/shares/s/ro", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("write below read-only share", os.WriteFile("/shares/s/ro/below/new", []byte("x"), 0o644))
	try("read private file", read("/shares/s/rw/private"))
	try("leave share", read("/shares/s/rw/../../../../etc/passwd"))
	try("follow link out", read("/shares/s/rw/link"))
	try("execute from share", unix.Exec("/shares/s/rw/program", []string{"x"}, nil))
	try("open device in share", read("/shares/s/rw/zero"))
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/shares/s/rw", 0)
	try("file handle", err)
	found["proc"] = list("/proc")
	try("own descriptors", func() error { _, err := os.ReadDir("/proc/self/fd"); return err }())
	try("kernel settings", read("/proc/sys/kernel/hostname"))
	try("kernel memory", read("/proc/kcore"))
	json.NewEncoder(os.Stdout).Encode(found)
}

func orNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// start runs the test binary in a jail that shows it, too.
func start(t *testing.T, change func(*jail.Config), args ...string) (*jail.Process, *os.File) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return jailtest.Start(t, func(c *jail.Config) {
		c.Files = []jail.File{{Host: self, Inside: "/program"}}
		if change != nil {
			change(c)
		}
	}, args...)
}

// inside starts the probe and returns its findings.
func inside(t *testing.T, change func(*jail.Config)) map[string]string {
	t.Helper()
	p, r := start(t, change, probeArg, strconv.Itoa(os.Getpid()))
	out := jailtest.Output(t, p, r)
	found := map[string]string{}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return found
}

func compare(t *testing.T, found, want map[string]string) {
	t.Helper()
	for name, w := range want {
		ok := false
		for alternative := range strings.SplitSeq(w, "|") {
			ok = ok || found[name] == alternative
		}
		if !ok {
			t.Errorf("%s: %q, want %q", name, found[name], w)
		}
	}
}

// harmless are the outcomes that every jail has.
var harmless = map[string]string{
	"pid": "1", "host name": "vm", "environment": "LD_LIBRARY_PATH=/lib", "descriptors": "0 1 2",
	"read passwd": "ENOENT", "read through parent": "ENOENT", "read the program": "done",
	"write in root": "EROFS", "write a library": "EROFS|ENOENT", "change the program": "EROFS|ETXTBSY", "remove the program": "EROFS|EBUSY",
	"socket inet": "EPERM", "socket unix": "EPERM", "socket vsock": "EPERM", "socket netlink": "EPERM", "socket packet": "EPERM",
	"kill everybody": "ESRCH", "kill the parent": "ESRCH", "trace": "EPERM",
	"mount": "EPERM", "unmount": "EPERM", "remount": "EPERM", "unshare": "EPERM", "chroot": "EPERM",
	"setuid": "EPERM", "setgid": "EPERM", "clone a namespace": "EPERM", "clone3": "ENOSYS", "io_uring": "EPERM", "bpf": "EPERM", "keyring": "EPERM",
	"raise limit": "EPERM", "execute another": "ENOENT", "device": "EPERM|EROFS|ENOENT", "no new privileges": "1", "file handle": "EPERM",
}

func with(more map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range []map[string]string{harmless, more} {
		for k, v := range m {
			all[k] = v
		}
	}
	return all
}

func TestInside(t *testing.T) {
	found := inside(t, nil)
	if uid, err := strconv.Atoi(found["uid"]); err != nil || uid != os.Geteuid() && (os.Geteuid() != 0 || uid < 0x70000000) || uid == 0 {
		t.Errorf("it is user %s", found["uid"])
	}
	compare(t, found, with(map[string]string{
		"capabilities": "0", "list processes": "ENOENT", "shares": "error", "proc": "error",
	}))
	for name := range strings.FieldsSeq(found["root"]) {
		// The program lies where it lies on the host; if it is not static (tests
		// built with cgo), its libraries are there as well.
		self, _ := os.Executable()
		if name != "program" && name != strings.Split(self, "/")[1] && !strings.HasPrefix(name, "lib") {
			t.Errorf("the root holds %s", name)
		}
	}
}

func TestInsideWithShares(t *testing.T) {
	host := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"rw", "ro/below"} {
		if err := os.MkdirAll(filepath.Join(host, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"rw/private": 0o600, "file": 0o644} {
		if err := os.WriteFile(filepath.Join(host, name), []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(host+"/rw/program", program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", host+"/rw/link"); err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if root {
		// What root's share holds of other users, and devices.
		if err := os.Chown(host+"/rw/private", 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(host+"/rw/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
			t.Fatal(err)
		}
		// A mount below a read-only share is read-only, too.
		if err := unix.Mount("tmpfs", host+"/ro/below", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(host+"/ro/below", 0) })
	}
	found := inside(t, func(c *jail.Config) {
		c.Shares = []jail.Share{{Name: "s", Entries: []jail.Entry{
			{Name: "rw", Host: host + "/rw"}, {Name: "ro", Host: host + "/ro", ReadOnly: true}, {Name: "file", Host: host + "/file", File: true},
		}}}
	})
	want := with(map[string]string{
		"shares": "file ro rw", "write share": "done", "write read-only share": "EROFS", "write below read-only share": "EROFS",
		"make share writable": "EPERM", "read private file": "done", "leave share": "ENOENT", "follow link out": "ENOENT",
		"execute from share": "EACCES", "proc": "1 self thread-self", "own descriptors": "done", "list processes": "done",
		"kernel settings": "ENOENT", "kernel memory": "ENOENT",
		"capabilities": "0", "uid": strconv.Itoa(os.Geteuid()),
	})
	if root {
		want["open device in share"] = "EACCES"
		want["capabilities"] = fmt.Sprintf("%x", 1<<unix.CAP_CHOWN|1<<unix.CAP_DAC_OVERRIDE|1<<unix.CAP_FOWNER|1<<unix.CAP_FSETID|1<<unix.CAP_DAC_READ_SEARCH)
		want["setuid"], want["setgid"] = "EPERM", "EPERM"
	}
	compare(t, found, want)
	var st unix.Stat_t
	if err := unix.Stat(host+"/rw/new", &st); err != nil || int(st.Uid) != os.Geteuid() {
		t.Errorf("the file written belongs to %d, %v", st.Uid, err)
	}
}

// waiting starts a prisoner that waits for its standard input to end.
func waiting(t *testing.T, change func(*jail.Config)) *jail.Process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cat, err := jail.FindClosure("/bin/cat", nil)
	if err != nil {
		t.Skip(err)
	}
	p, out := start(t, func(c *jail.Config) {
		c.Closure, c.Args, c.Files = cat, nil, nil
		c.Descriptors[0] = r
		if change != nil {
			change(c)
		}
	})
	r.Close()
	t.Cleanup(func() {
		w.Close()
		if status := p.Status(); !status.Exited() {
			t.Errorf("the prisoner ended with %x", status)
		}
		if err := p.Release(); err != nil {
			t.Error(err)
		}
	})
	// A byte that comes back says that the loader is through.
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if n, err := out.Read(make([]byte, 1)); n != 1 {
		t.Fatal("cat is silent: ", err)
	}
	return p
}

func TestVerify(t *testing.T) {
	p := waiting(t, nil)
	facts, err := p.Verify()
	if err != nil {
		t.Error(err)
	}
	for _, f := range facts {
		if !f.InForce && !f.Optional {
			t.Errorf("%s: %s", f.Name, f.Detail)
		}
	}
}

// TestVerifyFindsGaps verifies a process that is not jailed at all as if it were.
func TestVerifyFindsGaps(t *testing.T) {
	p := waiting(t, func(c *jail.Config) { c.Open = true })
	facts, err := p.Verify()
	if err != nil || len(facts) != 1 || facts[0].InForce {
		t.Errorf("an open process: %+v, %v", facts, err)
	}
	p.PretendJailed()
	facts, err = p.Verify()
	if !errors.Is(err, jail.ErrOpen) {
		t.Errorf("error %v, want ErrOpen", err)
	}
	gaps := map[string]bool{}
	for _, f := range facts {
		gaps[f.Name] = !f.InForce
	}
	for _, name := range []string{"root", "mounts", "namespaces", "system calls"} {
		if !gaps[name] {
			t.Errorf("%s: in force without a jail", name)
		}
	}
}

func TestGroup(t *testing.T) {
	name := fmt.Sprintf("manis-test-%d", os.Getpid())
	t.Cleanup(func() {
		// The inner group is the jail's to remove, the outer one is ours, and
		// comes last: cleanups run backwards.
		for _, dir := range []string{"", "memory/", "pids/"} {
			unix.Rmdir("/sys/fs/cgroup/" + dir + name)
		}
	})
	p := waiting(t, func(c *jail.Config) {
		c.Group = cgroup.Config{Path: "/" + name + "/inner", MemoryBytes: 64 << 20, PIDs: 10}
	})
	facts, err := p.Verify()
	if err != nil {
		t.Fatal(err)
	}
	f := facts[len(facts)-1]
	if f.Name != "control group" {
		t.Fatalf("last fact %+v", f)
	}
	if !f.InForce {
		if os.Geteuid() == 0 {
			t.Skip("this host lets root make no control group: ", f.Detail)
		}
		if f.Detail == "" {
			t.Error("no reason why there is no group")
		}
		return
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil || !strings.Contains(string(b), name+"/inner") {
		t.Errorf("the process is in %s, %v", b, err)
	}
}

// TestSteps are failures of the set-up: each must name what failed, and leave nothing.
func TestErrors(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	closure, err := jail.FindClosure(self, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*jail.Config)
		says   string
	}{
		"no mount point": {func(c *jail.Config) { c.Dir = "/nonexistent" }, "/nonexistent"},
		"no file":        {func(c *jail.Config) { c.Files = []jail.File{{Host: "/nonexistent", Inside: "/file"}} }, "file"},
		"no program":     {func(c *jail.Config) { c.Closure = &jail.Closure{Program: "/nonexistent"} }, "nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			config := jail.Config{Closure: closure, Dir: t.TempDir(), Name: t.Name()}
			c.change(&config)
			p, err := jail.Start(config)
			if err == nil {
				p.Release()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q, want %q in it", err, c.says)
			}
		})
	}
}

func BenchmarkStart(b *testing.B) {
	program, err := jail.FindClosure("/usr/bin/qemu-system-x86_64", nil)
	if err != nil {
		b.Skip(err)
	}
	for name, open := range map[string]bool{"jailed": false, "open": true} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			for b.Loop() {
				p, err := jail.Start(jail.Config{Closure: program, Args: []string{"--nonsense"}, Dir: dir, Name: "bench", Open: open})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				p.Status()
				p.Release()
				b.StartTimer()
			}
		})
	}
}

// inNamespace runs one test of this binary as root of a user namespace.
func inNamespace(t *testing.T, test string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), nestedVar+"=1", "MANIS_TEST_SECOND_RUN=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("this host has no user namespaces for ordinary users")
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Errorf("%v\n%s", err, out)
	}
}

// nestedVar marks a test that runs as root of a user namespace.
const nestedVar = "MANIS_TEST_NESTED"

// TestNested starts a jail as the root of a user namespace, who is not the
// host's root and has no other user to offer.
func TestNested(t *testing.T) {
	if os.Getenv(nestedVar) == "" {
		inNamespace(t, t.Name())
		return
	}
	compare(t, inside(t, nil), with(map[string]string{"uid": "0", "capabilities": "0", "setuid": "EPERM"}))
	p := waiting(t, nil)
	if _, err := p.Verify(); err != nil {
		t.Error(err)
	}
}

// TestNoNamespaces starts a jail where the host permits no user namespace.
func TestNoNamespaces(t *testing.T) {
	if os.Getenv(nestedVar) == "" {
		inNamespace(t, t.Name())
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	cat, err := jail.FindClosure("/bin/cat", nil)
	if err != nil {
		t.Skip(err)
	}
	p, err := jail.Start(jail.Config{Closure: cat, Dir: t.TempDir()})
	if err == nil {
		p.Release()
		t.Fatal("started")
	}
	if !errors.Is(err, jail.ErrUnsupported) || !strings.Contains(err.Error(), "max_user_namespaces") {
		t.Errorf("error %q, want ErrUnsupported and what to do", err)
	}
}

// TestShareOfEverything shares the host's root directory, in which the jail's
// own mount point lies.
func TestShareOfEverything(t *testing.T) {
	p := waiting(t, func(c *jail.Config) {
		c.Shares = []jail.Share{{Name: "s", Entries: []jail.Entry{{Name: "host", Host: "/", ReadOnly: true}}}}
	})
	if _, err := p.Verify(); err != nil {
		t.Error(err)
	}
	inside := fmt.Sprintf("/proc/%d/root/shares/s/host", p.PID)
	if _, err := os.Stat(inside + "/etc/passwd"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(inside+t.TempDir()+"/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing through the share: %v, want a read-only file system", err)
	}
}
