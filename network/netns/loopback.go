package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Loopback accepts what programs of the host send to localhost inside a namespace, whatever the TCP port: containerd
// does so for "kubectl port-forward". One listener has them all, by a program of the kind sk_lookup (Linux 5.9 and later),
// which the kernel asks before it looks for a listener of the port. Only 127.0.0.1 is taken, to which connections come from
// inside the namespace alone.
type Loopback struct {
	listener *net.TCPListener
	held     []int // descriptors of the map, the program and the link, by which they live
}

// NewLoopback begins to accept in the namespace that is open as ns. The caller closes what is returned.
func NewLoopback(ns *os.File) (_ *Loopback, err error) {
	l := new(Loopback)
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	err = Do(ns, func() error {
		var config net.ListenConfig
		config.SetMultipathTCP(false) // such sockets do not go into maps
		any, err := config.Listen(context.Background(), "tcp4", "127.0.0.1:0")
		if err == nil {
			l.listener = any.(*net.TCPListener)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen at a namespace's localhost: %w", err)
	}
	sockets, err := l.hold("make a map", unix.BPF_MAP_CREATE, words(unix.BPF_MAP_TYPE_SOCKMAP, 4, 8, 1))
	if err != nil {
		return nil, err
	}
	raw, err := l.listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = putSocket(sockets, fd) }); err != nil || failed != nil {
		return nil, fmt.Errorf("put the listener into a map: %w", errors.Join(err, failed))
	}
	program, err := l.load(sockets)
	if err != nil {
		return nil, err
	}
	if _, err := l.hold("attach a program to the namespace", unix.BPF_LINK_CREATE, words(uint32(program), uint32(ns.Fd()), unix.BPF_SK_LOOKUP, 0)); err != nil {
		return nil, err
	}
	return l, nil
}

// Accept returns the next connection and the port that it was made to.
func (l *Loopback) Accept() (*net.TCPConn, uint16, error) {
	conn, err := l.listener.AcceptTCP()
	if err != nil {
		return nil, 0, err
	}
	return conn, conn.LocalAddr().(*net.TCPAddr).AddrPort().Port(), nil
}

// Close ends it. Connections that were accepted go on.
func (l *Loopback) Close() error {
	var err error
	if l.listener != nil {
		err = l.listener.Close()
	}
	for _, fd := range l.held {
		unix.Close(fd)
	}
	l.held = nil
	return err
}

func words(list ...uint32) []byte {
	var b []byte
	for _, w := range list {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

// bpf is bpf(2). The verifier gives up with EAGAIN when a signal is pending, such as the Go runtime's own.
func bpf(command int, attributes []byte) (int, error) {
	for tries := 0; ; tries++ {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(&attributes[0])), uintptr(len(attributes)))
		if errno == 0 {
			return int(fd), nil
		}
		if errno != unix.EAGAIN || tries == 100 {
			return -1, errno
		}
	}
}

// hold makes something that lives as long as its descriptor. The kernel sets close-on-exec.
func (l *Loopback) hold(what string, command int, attributes []byte) (int, error) {
	fd, err := bpf(command, attributes)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", what, err)
	}
	l.held = append(l.held, fd)
	return fd, nil
}

// putSocket makes a socket the first of the map.
func putSocket(sockets int, fd uintptr) error {
	var key uint32
	value := uint64(fd)
	var pin runtime.Pinner
	pin.Pin(&key)
	pin.Pin(&value)
	defer pin.Unpin()
	attributes := words(uint32(sockets), 0)
	attributes = binary.NativeEndian.AppendUint64(attributes, uint64(uintptr(unsafe.Pointer(&key))))
	attributes = binary.NativeEndian.AppendUint64(attributes, uint64(uintptr(unsafe.Pointer(&value))))
	attributes = binary.NativeEndian.AppendUint64(attributes, unix.BPF_ANY)
	_, err := bpf(unix.BPF_MAP_UPDATE_ELEM, attributes)
	return err
}

// Offsets in struct bpf_sk_lookup, and numbers of helpers (linux/bpf.h).
const (
	lookupProtocol = 12
	lookupLocalIP4 = 40

	helperMapLookup = 1
	helperSkRelease = 86
	helperSkAssign  = 124

	pass = 1 // SK_PASS: with the socket that was assigned, or as without the program
)

// load gives the kernel the program: TCP to 127.0.0.1 goes to the map's first socket.
func (l *Loopback) load(sockets int) (int, error) {
	var p []byte
	add := func(op, dst, src uint8, offset int16, value int32) {
		p = append(p, op, dst|src<<4)
		p = binary.NativeEndian.AppendUint16(p, uint16(offset))
		p = binary.NativeEndian.AppendUint32(p, uint32(value))
	}
	localhost := int32(binary.NativeEndian.Uint32([]byte{127, 0, 0, 1}))
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 6, 1, 0, 0) // r6 = the context
	add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 2, 6, lookupProtocol, 0)
	add(unix.BPF_JMP|unix.BPF_JNE|unix.BPF_K, 2, 0, 16, unix.IPPROTO_TCP)
	add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 2, 6, lookupLocalIP4, 0)
	add(unix.BPF_JMP32|unix.BPF_JNE|unix.BPF_K, 2, 0, 14, localhost)
	add(unix.BPF_ST|unix.BPF_MEM|unix.BPF_W, 10, 0, -4, 0)                                  // the key
	add(unix.BPF_LD|unix.BPF_IMM|unix.BPF_DW, 1, unix.BPF_PSEUDO_MAP_FD, 0, int32(sockets)) // two instructions
	add(0, 0, 0, 0, 0)
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 2, 10, 0, 0)
	add(unix.BPF_ALU64|unix.BPF_ADD|unix.BPF_K, 2, 0, 0, -4)
	add(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, helperMapLookup)
	add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 0, 7, 0)
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 7, 0, 0, 0)
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 1, 6, 0, 0)
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 2, 7, 0, 0)
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, 3, 0, 0, 0)
	add(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, helperSkAssign)
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, 1, 7, 0, 0)
	add(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, helperSkRelease)
	add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, 0, 0, 0, pass)
	add(unix.BPF_JMP|unix.BPF_EXIT, 0, 0, 0, 0)
	licence := []byte("Apache-2.0\x00")
	var pin runtime.Pinner
	pin.Pin(&p[0])
	pin.Pin(&licence[0])
	defer pin.Unpin()
	attributes := make([]byte, 72)
	binary.NativeEndian.PutUint32(attributes[0:], unix.BPF_PROG_TYPE_SK_LOOKUP)
	binary.NativeEndian.PutUint32(attributes[4:], uint32(len(p)/8))
	binary.NativeEndian.PutUint64(attributes[8:], uint64(uintptr(unsafe.Pointer(&p[0]))))
	binary.NativeEndian.PutUint64(attributes[16:], uint64(uintptr(unsafe.Pointer(&licence[0]))))
	binary.NativeEndian.PutUint32(attributes[68:], unix.BPF_SK_LOOKUP)
	return l.hold("load a program for the namespace's localhost", unix.BPF_PROG_LOAD, attributes)
}
