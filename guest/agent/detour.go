package agent

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// A name server's port on loopback is not the agent's to take: a program in a container that serves names binds it on
// all addresses. So the agent listens at another port, and eBPF programs at the containers' control group exchange the
// two where a socket names its peer, and where it is told it (kernel documentation, "BPF_PROG_TYPE_CGROUP_SOCK_ADDR").

// namePort is the port of name servers.
const namePort = 53

// Offsets in struct bpf_sock_addr; addresses and ports are in network byte order.
const (
	sockAddrIP4  = 4
	sockAddrIP6  = 8
	sockAddrPort = 24
)

// The helper that tells the network namespace of a socket, in linux/bpf.h.
const bpfNetnsCookie = 122

// detour makes processes of containers that are in the agent's network namespace reach port where they mean the
// server's own one, until release.
func detour(server netip.Addr, port uint16) (release func(), err error) {
	var links []int
	release = sync.OnceFunc(func() {
		for _, fd := range links {
			unix.Close(fd)
		}
	})
	defer func() {
		if err != nil {
			release()
		}
	}()
	cookie, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	group, err := unix.Open(containersCgroup, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the control group of containers: %w", err)
	}
	defer unix.Close(group)
	type turn struct {
		kind     uint32
		from, to uint16
	}
	hooks := []turn{
		{unix.BPF_CGROUP_INET6_CONNECT, namePort, port}, {unix.BPF_CGROUP_UDP6_SENDMSG, namePort, port},
		{unix.BPF_CGROUP_UDP6_RECVMSG, port, namePort}, {unix.BPF_CGROUP_INET6_GETPEERNAME, port, namePort},
	}
	if server.Is4() {
		// Sockets of IPv6 reach it as well, by its mapped address.
		hooks = append(hooks,
			turn{unix.BPF_CGROUP_INET4_CONNECT, namePort, port}, turn{unix.BPF_CGROUP_UDP4_SENDMSG, namePort, port},
			turn{unix.BPF_CGROUP_UDP4_RECVMSG, port, namePort}, turn{unix.BPF_CGROUP_INET4_GETPEERNAME, port, namePort})
	}
	for n, h := range hooks {
		program := portProgram(server, n >= 4, cookie, h.from, h.to)
		fd, err := program.load(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, h.kind)
		if err != nil {
			return nil, fmt.Errorf("load the way to it: %w", err)
		}
		// The program lives as long as the link, and that as long as its descriptor.
		attr := make([]byte, 16)
		binary.NativeEndian.PutUint32(attr[0:], uint32(fd))
		binary.NativeEndian.PutUint32(attr[4:], uint32(group))
		binary.NativeEndian.PutUint32(attr[8:], h.kind)
		link, err := bpf(unix.BPF_LINK_CREATE, attr)
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("attach the way to it: %w", err)
		}
		links = append(links, link)
	}
	return release, nil
}

// portProgram exchanges the port of an address, in one network namespace, and leaves everything else as it is.
func portProgram(server netip.Addr, four bool, cookie uint64, from, to uint16) bpfProgram {
	var p bpfProgram
	var skips []int
	unless := func(op, reg, other uint8, imm int32) {
		skips = append(skips, len(p))
		p.add(op, reg, other, 0, imm)
	}
	const (
		unequal     = unix.BPF_JMP | unix.BPF_JNE
		unequalWord = unix.BPF_JMP32 | unix.BPF_JNE // the immediate's sign counts for nothing
	)
	// r6 = the context.
	p.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 6, 1, 0, 0)
	p.add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 2, 6, sockAddrPort, 0)
	unless(unequalWord|unix.BPF_K, 2, 0, int32(networkOrder(from)))
	words, at := server.As16(), int16(sockAddrIP6)
	address := words[:]
	if four {
		address, at = words[12:], sockAddrIP4
	}
	for ; len(address) > 0; address, at = address[4:], at+4 {
		p.add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 2, 6, at, 0)
		unless(unequalWord|unix.BPF_K, 2, 0, int32(binary.NativeEndian.Uint32(address)))
	}
	p.add(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, bpfNetnsCookie)
	// A load of 64 bits is two instructions.
	p.add(unix.BPF_LD|unix.BPF_DW|unix.BPF_IMM, 2, 0, 0, int32(uint32(cookie)))
	p.add(0, 0, 0, 0, int32(uint32(cookie>>32)))
	unless(unequal|unix.BPF_X, 0, 2, 0)
	p.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, 2, 0, 0, int32(networkOrder(to)))
	p.add(unix.BPF_STX|unix.BPF_MEM|unix.BPF_W, 6, 2, sockAddrPort, 0)
	for _, at := range skips {
		binary.NativeEndian.PutUint16(p[at+2:], uint16((len(p)-at)/8-1))
	}
	p.exit(1) // let it pass
	return p
}

// networkOrder is a port as the kernel keeps it.
func networkOrder(port uint16) uint16 {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return bits.ReverseBytes16(port)
	}
	return port
}

// netnsCookie tells the agent's network namespace from those that containers make.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie: %w", err)
	}
	return cookie, nil
}
