package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// A cgroup's device filter is one eBPF program that compares the request with one
// rule after the other. The few instructions that it needs are assembled here.
const (
	// Offsets in struct bpf_cgroup_dev_ctx: access<<16 | type, major, minor.
	devAccessType = 0
	devMajor      = 4
	devMinor      = 8

	devTypeBlock = 1
	devTypeChar  = 2

	devMknod = 1
	devRead  = 2
	devWrite = 4
)

// maxDeviceRules bounds a container's rules, and with it the program.
const maxDeviceRules = 1024

// bpfProgram is eBPF machine code, 8 bytes each instruction.
type bpfProgram []byte

func (p *bpfProgram) add(op uint8, dst, src uint8, off int16, imm int32) {
	b := append(*p, op, dst|src<<4)
	b = binary.NativeEndian.AppendUint16(b, uint16(off))
	*p = binary.NativeEndian.AppendUint32(b, uint32(imm))
}

// exit returns verdict from the program.
func (p *bpfProgram) exit(verdict int32) {
	p.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, 0, 0, 0, verdict)
	p.add(unix.BPF_JMP|unix.BPF_EXIT, 0, 0, 0, 0)
}

// deviceProgram compiles rules of which the last that matches wins; nothing
// matching is a refusal.
func deviceProgram(rules []*api.DeviceRule) (bpfProgram, error) {
	if len(rules) > maxDeviceRules {
		return nil, fmt.Errorf("%d device rules: more than %d", len(rules), maxDeviceRules)
	}
	var p bpfProgram
	// r2 = type, r3 = access, r4 = major, r5 = minor.
	p.add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 2, 1, devAccessType, 0)
	p.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 3, 2, 0, 0)
	p.add(unix.BPF_ALU64|unix.BPF_AND|unix.BPF_K, 2, 0, 0, 0xffff)
	p.add(unix.BPF_ALU64|unix.BPF_RSH|unix.BPF_K, 3, 0, 0, 16)
	p.add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 4, 1, devMajor, 0)
	p.add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 5, 1, devMinor, 0)
	for i := len(rules) - 1; i >= 0; i-- {
		all, err := p.rule(rules[i])
		if err != nil {
			return nil, err
		}
		if all {
			// The kernel takes no program with code that is never reached.
			return p, nil
		}
	}
	p.exit(0)
	return p, nil
}

// rule appends the comparison with one rule. all is true for one that every request
// matches.
func (p *bpfProgram) rule(r *api.DeviceRule) (all bool, err error) {
	var kind int32
	switch r.Type {
	case "a", "":
	case "b":
		kind = devTypeBlock
	case "c", "u":
		kind = devTypeChar
	default:
		return false, fmt.Errorf("device rule of type %q: want a, b or c", r.Type)
	}
	var access int32
	for _, c := range r.Access {
		switch c {
		case 'r':
			access |= devRead
		case 'w':
			access |= devWrite
		case 'm':
			access |= devMknod
		default:
			return false, fmt.Errorf("device rule with access %q: want some of rwm", r.Access)
		}
	}
	if access == 0 {
		access = devRead | devWrite | devMknod
	}
	if r.Major > 1<<20 || r.Minor > 1<<20 {
		return false, fmt.Errorf("device rule for %d:%d: there is no such number", r.Major, r.Minor)
	}
	// Each test jumps behind the verdict when it fails; skips are patched in at the end.
	var skips []int
	skip := func(op uint8, reg uint8, imm int32) {
		skips = append(skips, len(*p))
		p.add(unix.BPF_JMP|op|unix.BPF_K, reg, 0, 0, imm)
	}
	if kind != 0 {
		skip(unix.BPF_JNE, 2, kind)
	}
	switch all := int32(devRead | devWrite | devMknod); {
	case access == all:
	case r.Allow:
		// Allowed when nothing else is asked for.
		p.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 0, 3, 0, 0)
		p.add(unix.BPF_ALU64|unix.BPF_AND|unix.BPF_K, 0, 0, 0, all&^access)
		skip(unix.BPF_JNE, 0, 0)
	default:
		// Refused when any of it is asked for.
		p.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 0, 3, 0, 0)
		p.add(unix.BPF_ALU64|unix.BPF_AND|unix.BPF_K, 0, 0, 0, access)
		skip(unix.BPF_JEQ, 0, 0)
	}
	if r.Major >= 0 {
		skip(unix.BPF_JNE, 4, int32(r.Major))
	}
	if r.Minor >= 0 {
		skip(unix.BPF_JNE, 5, int32(r.Minor))
	}
	var verdict int32
	if r.Allow {
		verdict = 1
	}
	p.exit(verdict)
	for _, at := range skips {
		binary.NativeEndian.PutUint16((*p)[at+2:], uint16((len(*p)-at)/8-1))
	}
	return len(skips) == 0, nil
}

// bpf is bpf(2). The verifier gives up with EAGAIN when a signal is pending, such
// as the Go runtime's own for preemption: then it is asked again.
func bpf(command int, attr []byte) (int, error) {
	for tries := 0; ; tries++ {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
		if errno == 0 {
			return int(fd), nil
		}
		if errno != unix.EAGAIN || tries == 100 {
			return -1, errno
		}
	}
}

// load gives the program to the kernel, which checks it for the place that it is to be attached to.
func (p bpfProgram) load(kind, place uint32) (int, error) {
	licence := []byte("Apache-2.0\x00")
	var pin runtime.Pinner
	pin.Pin(&p[0])
	pin.Pin(&licence[0])
	defer pin.Unpin()
	attr := make([]byte, 72)
	binary.NativeEndian.PutUint32(attr[0:], kind)
	binary.NativeEndian.PutUint32(attr[4:], uint32(len(p)/8))
	binary.NativeEndian.PutUint64(attr[8:], uint64(uintptr(unsafe.Pointer(&p[0]))))
	binary.NativeEndian.PutUint64(attr[16:], uint64(uintptr(unsafe.Pointer(&licence[0]))))
	binary.NativeEndian.PutUint32(attr[68:], place)
	return bpf(unix.BPF_PROG_LOAD, attr)
}

// filterDevices puts the rules in force for the cgroup, in place of earlier ones.
func (g *cgroup) filterDevices(rules []*api.DeviceRule) error {
	p, err := deviceProgram(rules)
	if err != nil {
		return fail(codes.InvalidArgument, err)
	}
	fd, err := p.load(unix.BPF_PROG_TYPE_CGROUP_DEVICE, unix.BPF_CGROUP_DEVICE)
	if err != nil {
		return fmt.Errorf("load device filter: %w", err)
	}
	// Containers that make cgroups of their own may add further filters below.
	attr := make([]byte, 20)
	binary.NativeEndian.PutUint32(attr[0:], uint32(g.fd))
	binary.NativeEndian.PutUint32(attr[4:], uint32(fd))
	binary.NativeEndian.PutUint32(attr[8:], unix.BPF_CGROUP_DEVICE)
	flags := uint32(unix.BPF_F_ALLOW_MULTI)
	if g.program >= 0 {
		flags |= unix.BPF_F_REPLACE
		binary.NativeEndian.PutUint32(attr[16:], uint32(g.program))
	}
	binary.NativeEndian.PutUint32(attr[12:], flags)
	if _, err := bpf(unix.BPF_PROG_ATTACH, attr); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("attach device filter (is CONFIG_CGROUP_BPF in the guest's kernel?): %w", err)
		}
		return fmt.Errorf("attach device filter: %w", err)
	}
	if g.program >= 0 {
		unix.Close(g.program)
	}
	g.program = fd
	return nil
}

// defaultDeviceRules are docker's: what every container may use.
func defaultDeviceRules() []*api.DeviceRule {
	rule := func(major, minor int64, access string) *api.DeviceRule {
		return &api.DeviceRule{Allow: true, Type: "c", Major: major, Minor: minor, Access: access}
	}
	return []*api.DeviceRule{
		// Any node may be made; it opens only what is allowed below.
		{Allow: true, Type: "c", Major: -1, Minor: -1, Access: "m"},
		{Allow: true, Type: "b", Major: -1, Minor: -1, Access: "m"},
		rule(1, 3, "rwm"), rule(1, 5, "rwm"), rule(1, 7, "rwm"), rule(1, 8, "rwm"), rule(1, 9, "rwm"),
		rule(5, 0, "rwm"), rule(5, 1, "rwm"), rule(5, 2, "rwm"), rule(136, -1, "rwm"),
	}
}
