package agent

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"manis/launch"
)

// A reaper is process 1 of a container that asks for an init, or of the PID
// namespace that containers share on request. It adopts and reaps orphans, and
// a container's reaper passes signals on to process 2, the command. The command is
// the agent's child, not the reaper's: the agent sees its end and then ends the
// namespace.
//
// Its program is a hundred bytes of machine code (reaper_amd64.s) in a file in
// memory. The agent's own program would do as well, but would cost each
// container megabytes, a language runtime's start and several of the threads that its
// limit allows.

// reaperStart points to that code, which is not longer than this; what follows it is
// never reached.
var reaperStart *[256]byte

// reaperFile makes the executable file.
var reaperFile = sync.OnceValues(func() (int, error) {
	fd, err := unix.MemfdCreate("init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("make init's program: %w", err)
	}
	if _, err := unix.Write(fd, elfProgram(reaperStart[:])); err != nil {
		return -1, fmt.Errorf("write init's program: %w", err)
	}
	if err := unix.Fchmod(fd, 0o555); err != nil {
		return -1, fmt.Errorf("write init's program: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK); err != nil {
		return -1, fmt.Errorf("seal init's program: %w", err)
	}
	return fd, nil
})

// elfProgram puts an ELF header before code: one segment, entered at the code's
// beginning.
func elfProgram(code []byte) []byte {
	const head, base = 64 + 56, 0x400000
	le := binary.LittleEndian
	b := append(make([]byte, 0, head+len(code)), "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	b = le.AppendUint16(b, 2)  // executable
	b = le.AppendUint16(b, 62) // x86-64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+head) // entry
	b = le.AppendUint64(b, 64)        // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, n := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, n)
	}
	b = le.AppendUint32(b, 1) // load
	b = le.AppendUint32(b, 5) // readable, executable
	size := uint64(head + len(code))
	for _, n := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, n)
	}
	return append(b, code...)
}

// spawnReaper starts a reaper as process 1 of the container's PID namespace, as
// the container's user. It runs on the container's thread.
func (c *container) spawnReaper() (*process, error) {
	p := c.request.Process
	id, err := identify(p)
	if err != nil {
		return nil, err
	}
	// It is not in the container's user namespace, which the first process makes.
	uid, err := c.machineUID(id.uid)
	if err != nil {
		return nil, err
	}
	gid, err := c.machineGID(id.gid)
	if err != nil {
		return nil, err
	}
	b := new(launch.Program)
	defer b.Release()
	b.Call("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	b.WriteFileAt(procDir, "self/oom_score_adj", strconv.Itoa(int(p.OomScoreAdj)))
	b.Groups(nil)
	b.User(uid, gid)
	return forkReaper(b, []string{"manis-init"}, launch.Attr{UseCgroup: true, CgroupFD: c.cgroup.fd})
}

// forkReaper completes the program and starts it from the calling thread.
func forkReaper(b *launch.Program, argv []string, attr launch.Attr) (*process, error) {
	file, err := reaperFile()
	if err != nil {
		return nil, err
	}
	b.Setsid()
	b.NoNewPrivileges()
	b.Capabilities(0, 0, 0, 0)
	b.Files([]int{nullFile, nullFile, nullFile})
	b.ExecFile(file, argv, nil)
	child, err := launch.Fork(b, attr, true)
	if err != nil {
		return nil, fmt.Errorf("start init: %w", err)
	}
	r := newProcess(child, nil)
	guard("wait for init", func() {
		defer close(r.done)
		r.reap()
		r.pidfd.Close()
	})
	return r, nil
}

// sandboxReaper is process 1 of the PID namespace that containers share on
// request. It lives as long as the machine, in an empty root of its own: those
// containers see it, and through it they must not see the agent's.
var sandboxReaper = sync.OnceValues(func() (*process, error) {
	g, err := newCgroup(".sandbox")
	if err != nil {
		return nil, err
	}
	b := new(launch.Program)
	defer b.Release()
	b.Call("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	b.Mount("tmpfs", runDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "mode=0755,size=4k,nr_inodes=2")
	b.PivotRoot(runDir)
	b.BoundCapabilities(0, lastCapability)
	b.Groups(nil)
	b.User(65534, 65534)
	return forkReaper(b, []string{"manis-init", "sandbox"}, launch.Attr{
		Namespaces: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroup:  true, CgroupFD: g.fd,
	})
})

// join gives the calling thread, or of a PID namespace its children, the namespace of a process.
func join(p *process, kind int) error {
	err := p.withFD(func(fd int) error { return unix.Setns(fd, kind) })
	if err != nil {
		return fmt.Errorf("join another container's namespaces: %w", err)
	}
	return nil
}

func newProcess(child launch.Child, s *stdio) *process {
	unix.SetNonblock(child.FD, true)
	return &process{
		pid:       child.PID,
		pidfd:     os.NewFile(uintptr(child.FD), "pidfd"),
		io:        s,
		launched:  time.Now(),
		exited:    make(chan struct{}),
		done:      make(chan struct{}),
		abandoned: make(chan struct{}),
	}
}
