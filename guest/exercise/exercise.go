// Package exercise is a program for a container of no use: it does once what containers
// usually do, so that a machine has done it before it is saved. What an emulated machine
// executes for the first time is translated first, which takes longer than
// the execution; the clones of a saved machine find it translated. Only the guest's
// kernel counts: other programs bring code of their own.
package exercise

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ChildArg is the argument by which the program asks a copy of itself to end at once.
const ChildArg = "child"

// limit bounds the exercise: a part that hangs must not keep a start waiting.
const limit = 20 * time.Second

// Run does everything once. What fails is told and does no harm.
func Run(args []string) int {
	if len(args) > 0 && args[0] == ChildArg {
		fmt.Println("child")
		return 0
	}
	time.AfterFunc(limit, func() { os.Exit(1) })
	code := 0
	for _, part := range []struct {
		name string
		do   func() error
	}{
		{"streams", streams}, {"files", files}, {"image", image}, {"processes", processes}, {"signals", signals},
		{"threads", threads}, {"memory", memory}, {"network", network}, {"facts", facts},
	} {
		if err := part.do(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", part.name, err)
			code = 1
		}
	}
	return code
}

// streams reads standard input to its end, and writes to the others in several sizes.
func streams() error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil && !errors.Is(err, unix.EIO) {
		return err
	}
	for _, n := range []int{1, 80, 4096, 64 << 10} {
		line := strings.Repeat("x", n-1) + "\n"
		if _, err := os.Stdout.WriteString(line); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "exercise")
	unix.IoctlGetWinsize(1, unix.TIOCGWINSZ)
	unix.IoctlGetTermios(1, unix.TCGETS)
	return nil
}

// files works in directories as a package manager and a database do.
func files() error {
	var errs []error
	for _, parent := range []string{"/tmp", "/dev/shm", "/"} {
		dir, err := os.MkdirTemp(parent, "exercise")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, filesIn(dir), os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

func filesIn(dir string) error {
	path := filepath.Join(dir, "a", "b")
	f, err := func() (*os.File, error) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	}()
	if err != nil {
		return err
	}
	defer f.Close()
	data := make([]byte, 200<<10)
	_, err = f.Write(data)
	_, err2 := f.WriteAt(data[:100], 50_000)
	_, err3 := f.ReadAt(data[:5000], 100)
	errs := []error{
		err, err2, err3, f.Sync(), f.Truncate(1000), f.Chmod(0o600), f.Chown(1, 1),
		os.Symlink("b", path+"s"), os.Link(path, path+"l"), os.Rename(path, path+"r"),
		os.Chtimes(path+"r", time.Now(), time.Now()), os.Remove(path + "l"),
	}
	unix.Setxattr(path+"r", "user.exercise", []byte("1"), 0) // not every filesystem can
	m, err := unix.Mmap(int(f.Fd()), 0, 1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		m[10] = 1
		errs = append(errs, unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	}
	errs = append(errs, err)
	_, err = os.Stat(path + "s")
	if !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	_, err = os.ReadDir(filepath.Dir(path))
	errs = append(errs, err, unix.Flock(int(f.Fd()), unix.LOCK_EX), unix.Flock(int(f.Fd()), unix.LOCK_UN))
	unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	var st unix.Statfs_t
	return errors.Join(append(errs, unix.Statfs(dir, &st))...)
}

// image changes files of the image, which copies them into the writable layer, and maps
// a program's pages as a loader does.
func image() error {
	var errs []error
	f, err := os.OpenFile("/etc/exercise", os.O_APPEND|os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteString("x")
		errs = append(errs, f.Close())
	}
	errs = append(errs, err, os.Chmod("/usr", 0o700), os.Remove("/usr/exercise"))
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer self.Close()
	const size = 4 << 20
	m, err := unix.Mmap(int(self.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	sum := byte(0)
	for i := 0; i < size; i += 64 << 10 {
		sum += m[i]
	}
	errs = append(errs, unix.Mprotect(m[:1<<20], unix.PROT_READ|unix.PROT_WRITE))
	for i := 0; i < 1<<20; i += 16 << 10 {
		m[i] = sum
	}
	errs = append(errs, unix.Mprotect(m[:1<<20], unix.PROT_READ|unix.PROT_EXEC), unix.Munmap(m))
	_, err = self.ReadAt(make([]byte, 832), 0)
	if _, e := os.Stat("/etc/nothing"); e == nil {
		err = errors.Join(err, errors.New("/etc/nothing exists"))
	}
	return errors.Join(append(errs, err)...)
}

// processes starts programs as a shell does, and with vfork.
func processes() error {
	out, err := exec.Command("/proc/self/exe", "exercise", ChildArg).Output()
	if err == nil && string(out) != "child\n" {
		err = fmt.Errorf("a child wrote %q", out)
	}
	for range 2 {
		err = errors.Join(err, fork("/proc/self/exe", "exercise", "exercise", ChildArg))
	}
	_, e := exec.Command("/nowhere").Output()
	if !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// fork starts a program by fork(2) and execve(2), as shells do and Go does not.
func fork(path string, argv ...string) error {
	file, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	args, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	pid, errno := forkAndExecute(file, args)
	if errno != 0 {
		return errno
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return fmt.Errorf("a forked child ended with %d", status.ExitStatus())
	}
	return nil
}

// forkAndExecute returns in the parent only. The child has one thread of many, and makes
// nothing but system calls.
//
//go:norace
//go:noinline
func forkAndExecute(file *byte, args []*byte) (uintptr, unix.Errno) {
	none := [1]*byte{}
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(file)), uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&none[0])))
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

func signals() error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM, unix.SIGUSR1, unix.SIGCHLD)
	defer signal.Stop(c)
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		return err
	}
	select {
	case <-c:
		return nil
	case <-time.After(time.Second):
		return errors.New("no signal came")
	}
}

func threads() error {
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			runtime.LockOSThread() // ends with the goroutine
			for range 3 {
				time.Sleep(time.Millisecond)
				unix.Nanosleep(&unix.Timespec{Nsec: 1000}, nil)
				runtime.Gosched()
			}
		})
	}
	all.Wait()
	return nil
}

func memory() error {
	b := make([]byte, 16<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	b = nil
	runtime.GC()
	return nil
}

// network converses locally and looks at the interfaces. It opens no internet socket: the first
// one draws the secrets from which the kernel makes TCP's sequence numbers, and all clones of the
// machine would have the same.
func network() error {
	_, err := net.Interfaces()
	return errors.Join(converse("unix", "/tmp/exercise.sock"), err)
}

// converse is a short conversation between a server and a client.
func converse(kind, address string) error {
	l, err := net.Listen(kind, address)
	if err != nil {
		return err
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = io.Copy(conn, conn)
			conn.Close()
		}
		served <- err
	}()
	conn, err := net.Dial(kind, l.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	for _, n := range []int{1, 1000, 40_000} {
		if _, err := conn.Write(make([]byte, n)); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, n)); err != nil {
			return err
		}
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
		io.Copy(io.Discard, conn)
		return <-served
	}
	return nil
}

// facts reads what runtimes read when they start.
func facts() error {
	for _, path := range []string{
		"/proc/self/status", "/proc/self/maps", "/proc/self/mountinfo", "/proc/self/cgroup", "/proc/meminfo", "/proc/cpuinfo",
		"/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/sys/kernel/osrelease", "/proc/sys/vm/overcommit_memory", "/proc/net/route",
		"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "/sys/devices/system/cpu/online", "/sys/kernel/mm/transparent_hugepage/enabled",
		"/etc/hosts", "/etc/hostname", "/dev/urandom", "/dev/zero",
	} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		io.ReadAll(io.LimitReader(f, 16<<10))
		f.Close()
	}
	filepath.WalkDir("/etc", func(string, os.DirEntry, error) error { return nil })
	var u unix.Utsname
	return errors.Join(unix.Uname(&u), func() error { _, err := os.Hostname(); return err }())
}
