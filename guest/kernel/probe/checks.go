package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

var fileSystems = []check{
	{"file systems", func() error {
		return holds("/proc/filesystems", "ext4", "erofs", "overlay", "tmpfs", "9p", "fuse", "proc", "sysfs", "devtmpfs", "devpts", "cgroup2", "mqueue", "bpf", "binfmt_misc", "hugetlbfs")
	}},
	{"overlay with extended attributes", overlay},
	{"tmpfs with ACLs and attributes", func() error {
		if err := os.WriteFile("/tmp/acl", nil, 0o600); err != nil {
			return err
		}
		// Version 2; owner, group, other: the ACL of mode 600.
		acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 0, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
		if err := unix.Setxattr("/tmp/acl", "system.posix_acl_access", acl, 0); err != nil {
			return err
		}
		return unix.Setxattr("/tmp/acl", "trusted.probe", []byte("x"), 0)
	}},
	{"terminals", func() error {
		if err := os.Mkdir("/tmp/pts", 0o755); err != nil {
			return err
		}
		if err := unix.Mount("devpts", "/tmp/pts", "devpts", 0, "newinstance,ptmxmode=0666"); err != nil {
			return err
		}
		f, err := os.OpenFile("/tmp/pts/ptmx", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPTN)
		if err != nil {
			return err
		}
		return exists(fmt.Sprintf("/tmp/pts/%d", n))()
	}},
	{"device mapper with verity, crypt and integrity", deviceMapper},
	{"ciphers", func() error { return holds("/proc/crypto", "aes-generic", "sha256-generic", "crc32c-generic") }},
}

func overlay() error {
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.MkdirAll("/tmp/o/"+d, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/tmp/o/lower/f", []byte("1"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount("overlay", "/tmp/o/merged", "overlay", 0, "lowerdir=/tmp/o/lower,upperdir=/tmp/o/upper,workdir=/tmp/o/work"); err != nil {
		return err
	}
	if err := os.Remove("/tmp/o/merged/f"); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat("/tmp/o/upper/f", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("no whiteout was made: mode %o, %v", st.Mode, err)
	}
	return nil
}

// deviceMapper asks for the list of target types (DM_LIST_VERSIONS).
func deviceMapper() error {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const headerSize, listVersions = 312, 0xc138fd0d
	b := make([]byte, 16<<10)
	binary.LittleEndian.PutUint32(b[0:], 4)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[16:], headerSize)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), listVersions, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return errno
	}
	for _, target := range []string{"verity\x00", "crypt\x00", "integrity\x00", "linear\x00"} {
		if !bytes.Contains(b, []byte(target)) {
			return fmt.Errorf("no target %s", strings.TrimRight(target, "\x00"))
		}
	}
	return nil
}

var systemCalls = []check{
	{"io_uring", implemented(unix.SYS_IO_URING_SETUP)},
	{"aio", implemented(unix.SYS_IO_SETUP)},
	{"epoll", implemented(unix.SYS_EPOLL_CREATE1)},
	{"eventfd", implemented(unix.SYS_EVENTFD2)},
	{"signalfd", implemented(unix.SYS_SIGNALFD4)},
	{"timerfd", implemented(unix.SYS_TIMERFD_CREATE)},
	{"POSIX timers", implemented(unix.SYS_TIMER_CREATE)},
	{"memfd", implemented(unix.SYS_MEMFD_CREATE)},
	{"membarrier", implemented(unix.SYS_MEMBARRIER)},
	{"rseq", implemented(unix.SYS_RSEQ)},
	{"bpf", implemented(unix.SYS_BPF)},
	{"landlock", func() error {
		// With no attributes and this flag the call answers the version of the interface.
		version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1)
		if errno != 0 || version < 1 {
			return fmt.Errorf("version %d: %w", version, errno)
		}
		return nil
	}},
	{"seccomp filter", func() error {
		action := uint32(unix.SECCOMP_RET_USER_NOTIF)
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
			return errno
		}
		return nil
	}},
	{"inotify", func() error { fd, err := unix.InotifyInit1(0); unix.Close(fd); return err }},
	{"fanotify with permission events", func() error {
		fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, unix.AT_FDCWD, "/tmp")
	}},
	{"keyrings", func() error {
		_, err := unix.AddKey("user", "probe", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
		return err
	}},
	{"System V IPC", func() error { _, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0o600); return err }},
	{"POSIX message queues", implemented(unix.SYS_MQ_OPEN)},
	{"name_to_handle_at", implemented(unix.SYS_NAME_TO_HANDLE_AT)},
	{"process_vm_readv", implemented(unix.SYS_PROCESS_VM_READV)},
	{"quotactl", implemented(unix.SYS_QUOTACTL)},
	{"pressure stall information", exists("/proc/pressure/cpu", "/proc/pressure/memory", "/proc/pressure/io")},
	{"children of a process", exists("/proc/self/task/1/children")},
	{"configuration in /proc/config.gz", func() error {
		f, err := os.Open("/proc/config.gz")
		if err != nil {
			return err
		}
		defer f.Close()
		r, err := gzip.NewReader(f)
		if err != nil {
			return err
		}
		content, err := io.ReadAll(r)
		if err == nil && !bytes.Contains(content, []byte("CONFIG_OVERLAY_FS=y")) {
			err = fmt.Errorf("it is not this kernel's")
		}
		return err
	}},
	{"32-bit programs", func() error {
		out, err := exec.Command("/tmp/share/probe32").CombinedOutput()
		if err == nil && string(out) != "386\n" {
			err = fmt.Errorf("it printed %q", out)
		}
		return err
	}},
	{"scripts", func() error {
		if err := os.WriteFile("/tmp/script", []byte("#!/tmp/share/probe32\n"), 0o755); err != nil {
			return err
		}
		return exec.Command("/tmp/script").Run()
	}},
}

var containers = []check{
	{"namespaces", exists("/proc/self/ns/cgroup", "/proc/self/ns/ipc", "/proc/self/ns/mnt", "/proc/self/ns/net", "/proc/self/ns/pid", "/proc/self/ns/time", "/proc/self/ns/user", "/proc/self/ns/uts")},
	{"cgroup controllers", func() error {
		return holds("/sys/fs/cgroup/cgroup.controllers", "cpu", "cpuset", "hugetlb", "io", "memory", "pids")
	}},
	{"cgroup files", func() error {
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+cpu +cpuset +io +memory +pids"), 0o644); err != nil {
			return err
		}
		if err := os.Mkdir("/sys/fs/cgroup/c", 0o755); err != nil {
			return err
		}
		for _, f := range []string{"cpu.max", "cpu.weight", "cpu.pressure", "cpuset.cpus", "io.max", "memory.max", "memory.swap.max", "memory.events", "pids.max", "cgroup.freeze", "cgroup.kill"} {
			if err := exists(filepath.Join("/sys/fs/cgroup/c", f))(); err != nil {
				return err
			}
		}
		return nil
	}},
	{"device rules of cgroup v2", deviceProgram},
}

// deviceProgram loads the smallest BPF program that rules over devices and attaches it.
func deviceProgram() error {
	instructions := [...]uint64{
		0x00000001_000000b7, // r0 = 1
		0x00000000_00000095, // exit
	}
	licence := [...]byte{'G', 'P', 'L', 0}
	const progLoad, progAttach, progTypeCgroupDevice, cgroupDevice = 5, 8, 15, 6
	load := struct {
		kind, count      uint32
		insns, licence   uint64
		level, size      uint32
		buffer           uint64
		version, flags   uint32
		name             [16]byte
		ifindex, expects uint32
	}{kind: progTypeCgroupDevice, count: 2, insns: uint64(uintptr(unsafe.Pointer(&instructions))), licence: uint64(uintptr(unsafe.Pointer(&licence)))}
	program, _, errno := unix.Syscall(unix.SYS_BPF, progLoad, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	if errno != 0 {
		return fmt.Errorf("load: %w", errno)
	}
	group, err := unix.Open("/sys/fs/cgroup/c", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	attach := struct{ target, program, kind, flags, replace uint32 }{uint32(group), uint32(program), cgroupDevice, 0, 0}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, progAttach, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return fmt.Errorf("attach: %w", errno)
	}
	return nil
}

var devices = []check{
	{"devices", exists("/dev/console", "/dev/fuse", "/dev/hwrng", "/dev/kmsg", "/dev/loop-control", "/dev/mapper/control", "/dev/net/tun", "/dev/null", "/dev/ptmx", "/dev/tty", "/dev/ttyS0", "/dev/urandom", "/dev/vda")},
	{"port to the host", func() error {
		// The port is announced by a message that may come after the first process.
		return eventually(func() error {
			ports, err := filepath.Glob("/dev/vport*p1")
			if err == nil && len(ports) == 0 {
				err = fmt.Errorf("no virtio port")
			}
			return err
		})
	}},
	{"9p share", func() error {
		if err := os.Mkdir("/tmp/share", 0o755); err != nil {
			return err
		}
		if err := unix.Mount("share", "/tmp/share", "9p", 0, "trans=virtio,version=9p2000.L,msize=65536"); err != nil {
			return err
		}
		content, err := os.ReadFile("/tmp/share/greeting")
		if err == nil && string(content) != "hello" {
			err = fmt.Errorf("the file holds %q", content)
		}
		return err
	}},
}

// absent is what no container needs and an attacker could use.
var absent = []check{
	{"no modules", unimplemented(unix.SYS_INIT_MODULE)},
	{"no kexec", unimplemented(unix.SYS_KEXEC_LOAD)},
	{"no kexec from files", unimplemented(unix.SYS_KEXEC_FILE_LOAD)},
	{"no modify_ldt", unimplemented(unix.SYS_MODIFY_LDT)},
	{"no userfaultfd", unimplemented(unix.SYS_USERFAULTFD)},
	{"no uselib", unimplemented(unix.SYS_USELIB)},
	{"no sysfs(2)", unimplemented(unix.SYS_SYSFS)},
	{"no x32", unimplemented(0x40000000 | unix.SYS_GETPID)},
	{"no memory, port and kernel devices", missing("/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore", "/dev/tty0", "/dev/vcs", "/dev/cpu", "/dev/snapshot", "/dev/nvram")},
	{"no debugfs and tracing", missing("/sys/kernel/debug", "/sys/kernel/tracing")},
	{"no unprivileged eBPF", func() error {
		// 1 can be lifted by an administrator's write, 2 (the default of our configuration) also.
		content, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
		if err == nil && strings.TrimSpace(string(content)) == "0" {
			err = fmt.Errorf("it is allowed")
		}
		return err
	}},
	{"no kernel log for the unprivileged", func() error { return holds("/proc/sys/kernel/dmesg_restrict", "1") }},
}
