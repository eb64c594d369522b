package monitor

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
	"manis/image/rootfs"
	"manis/network"
	"manis/place"
	"manis/pool"
	"manis/sandbox"
	"manis/storage"
	"manis/template"
	"manis/trace"
	"manis/vmm"
)

// Standby is a machine that waits for a container: it was cloned from a template and has run a
// container of no use already, so that what a start executes has been executed once. Its process
// becomes the monitor of the container that claims it, and belongs to nobody else from then on.
type Standby struct {
	sandbox  *sandbox.Sandbox
	template *template.Template
	key      string
	dir      string // with the rehearsal's disks
}

// Waiting lists the sockets of machines that wait for a container with this configuration.
func Waiting(ctx context.Context, places *place.Places, cfg *container.Config) []string {
	dir, err := os.Open(places.Pool())
	if err != nil {
		return nil // no pool
	}
	dir.Close()
	if !poolable(cfg) {
		return nil
	}
	kind, err := PoolKind(ctx, places, cfg)
	if err != nil {
		return nil
	}
	sockets, _ := filepath.Glob(filepath.Join(places.Pool(), kind.Key+"-*"))
	return sockets
}

// poolKey is how much of a template's key is in a socket's name.
const poolKey = 16

// poolable reports whether a container can have a machine that runs already: host directories
// are mounted when QEMU is started.
func poolable(cfg *container.Config) bool {
	if cfg.Boot != "" && cfg.Boot != "auto" {
		return false
	}
	for _, m := range cfg.Mounts {
		if m.Type == "bind" || m.Type == "volume" {
			return false
		}
	}
	return true
}

// claimRequest is the message by which a front end claims a machine. With it come the connection
// to the front end and the file for the monitor's own messages.
type claimRequest struct {
	ID   string `json:"id"`
	Root string `json:"root"`
}

// claimTime bounds how long a waiting machine may take to accept: it only takes a lock.
const claimTime = 2 * time.Second

// claim gives a container to the first waiting machine that takes it.
func claim(ctx context.Context, sockets []string, c *container.Container, front, log *os.File) bool {
	if len(sockets) == 0 {
		return false
	}
	ctx, span := trace.Start(ctx, "claim")
	defer span.End()
	request, err := json.Marshal(claimRequest{ID: c.ID, Root: c.Dir()})
	if err != nil {
		return false
	}
	rights := unix.UnixRights(int(front.Fd()), int(log.Fd()))
	for _, path := range sockets {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			if errors.Is(err, unix.ECONNREFUSED) {
				os.Remove(path) // its process was killed
			}
			continue
		}
		conn.SetDeadline(time.Now().Add(claimTime))
		answer := make([]byte, 1)
		_, _, err = conn.(*net.UnixConn).WriteMsgUnix(request, rights, nil)
		if err == nil {
			_, err = io.ReadFull(conn, answer)
		}
		conn.Close()
		if err == nil {
			return true
		}
	}
	return false
}

// StandbyMain is the body of `manis standby`: it makes a machine of the size that cfg asks for,
// says on w when it waits and when it is claimed, and then is a container's monitor. It ends
// when idle, which its starter closes, ends first.
func StandbyMain(ctx context.Context, cfg *container.Config, w io.Writer, idle io.Reader) error {
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	if err := places.Make(); err != nil {
		return err
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, idle)
		cancel()
	}()
	s, err := newStandby(waiting, places, cfg)
	if err != nil {
		return err
	}
	defer s.release()
	listener, path, err := s.listen(places)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer listener.Close()
	fmt.Fprintln(w, "ready")
	defer context.AfterFunc(waiting, func() { listener.Close() })()
	go func() {
		select {
		case <-s.sandbox.Done():
			listener.Close()
		case <-waiting.Done():
		}
	}()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return errors.New("waited for a container in vain")
		}
		id, first, log, err := s.accept(conn, places)
		if err != nil {
			conn.Close()
			continue
		}
		began := time.Now()
		// Nobody else finds it any more.
		os.Remove(path)
		listener.Close()
		if log != nil {
			unix.Dup3(int(log.Fd()), 2, 0)
			log.Close()
		}
		unix.Chdir("/")
		return own(ctx, places, id, task{first: first, standby: s, ready: func() {
			s.hurry()
			conn.Write([]byte{1})
			conn.Close()
			fmt.Fprintln(w, "claimed", time.Since(began).Microseconds())
			if c, ok := w.(io.Closer); ok {
				c.Close()
			}
		}})
	}
}

// listen makes the socket by which the machine is claimed.
func (s *Standby) listen(places *place.Places) (*net.UnixListener, string, error) {
	if err := os.MkdirAll(places.Pool(), 0o700); err != nil {
		return nil, "", fmt.Errorf("make the directory of waiting machines: %w", err)
	}
	path := filepath.Join(places.Pool(), s.key[:poolKey]+"-"+strconv.Itoa(os.Getpid()))
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, "", fmt.Errorf("wait for a container: %w", err)
	}
	l.SetUnlinkOnClose(false)
	return l, path, nil
}

// accept reads a claim, which only this user may make.
func (s *Standby) accept(conn *net.UnixConn, places *place.Places) (id string, first net.Conn, log *os.File, err error) {
	conn.SetDeadline(time.Now().Add(claimTime))
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", nil, nil, err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return "", nil, nil, errors.Join(cerr, err)
	}
	if int(peer.Uid) != os.Geteuid() {
		return "", nil, nil, errors.New("claimed by another user")
	}
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(8))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return "", nil, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return "", nil, nil, errors.New("a claim without descriptors")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return "", nil, nil, errors.New("a claim without its two descriptors")
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	log = os.NewFile(uintptr(fds[1]), "log")
	first, err = fileConn(fds[0])
	var r claimRequest
	if err == nil {
		err = json.Unmarshal(b[:n], &r)
	}
	if err == nil && filepath.Dir(r.Root) != places.Containers() {
		err = errors.New("a claim of another installation")
	}
	if err != nil {
		log.Close()
		if first != nil {
			first.Close()
		}
		return "", nil, nil, err
	}
	return r.ID, first, log, nil
}

// newStandby clones a machine and has it run a container of no use.
func newStandby(ctx context.Context, places *place.Places, cfg *container.Config) (_ *Standby, err error) {
	s := &Standby{}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	vm, driver, err := Machine(ctx, places, cfg)
	if err != nil {
		return nil, err
	}
	vm = TemplateOf(vm)
	if s.template, err = Templates(places, driver).Get(ctx, vm, nil); err != nil {
		return nil, err
	}
	s.key = s.template.Info.Key
	if err := os.MkdirAll(places.Pool(), 0o700); err != nil {
		return nil, err
	}
	s.dir = filepath.Join(places.Pool(), place.StandbyDir(os.Getpid()))
	os.RemoveAll(s.dir)
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	vm.Frozen, vm.RunDir, vm.CodeCache = s.template.Frozen(), s.dir, standbyCode
	// What the network will be is known before it is there.
	stack, err := network.New(ctx, network.Config{})
	if err != nil {
		return nil, err
	}
	guest := stack.Guest()
	stack.Close()
	s.sandbox, err = sandbox.Start(ctx, sandbox.Config{
		Driver: driver, VM: vm, MAC: guest.MAC.String(), Hold: true,
		Setup: &agent.SetupRequest{Network: guestNetwork(&guest)},
	})
	if err != nil {
		return nil, err
	}
	return s, s.rehearse(ctx, places, &guest)
}

// release ends the machine.
func (s *Standby) release() {
	if s.sandbox != nil {
		s.sandbox.Kill()
	}
	s.template.Close()
	if s.dir != "" {
		os.RemoveAll(s.dir)
		pool.Leave(filepath.Dir(s.dir)) // when it was the last
	}
}

// standbyCode is how much translated code a machine that waits may keep: that of a start and
// that of the container to come. With as much as other machines have, the second would push
// the first out.
const standbyCode = 96 << 20

// rehearsalDisk is the size of the writable layer in a rehearsal, bytes.
const rehearsalDisk = 32 << 20

// rehearse runs a container that does nothing, from a root filesystem with one program.
func (s *Standby) rehearse(ctx context.Context, places *place.Places, guest *network.Addresses) error {
	root, img, err := rehearsalImage(ctx, s.dir)
	if err != nil {
		return fmt.Errorf("make the image of the rehearsal: %w", err)
	}
	defer os.Remove(root.Name())
	defer root.Close()
	path := filepath.Join(s.dir, "scratch")
	if err := storage.NewBlanks(filepath.Join(places.Cache, "blank")).Clone(ctx, rehearsalDisk, path); err != nil {
		return err
	}
	defer os.Remove(path)
	scratch, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer scratch.Close()
	for _, d := range []vmm.Disk{{Serial: rootSerial, File: root, ReadOnly: true}, {Serial: scratchSerial, File: scratch, Sync: vmm.SyncUnsafe}} {
		if err := s.sandbox.VM().Insert(ctx, d); err != nil {
			return err
		}
	}
	cfg := &container.Config{
		ID: containerID, Hostname: "rehearsal", ShmBytes: 64 << 20,
		Process: container.Process{Args: []string{"/rehearse"}, Env: []string{"PATH=/"}, Dir: "/"},
	}
	request, err := spec.Build(cfg, spec.Environment{
		RootDisk: rootSerial, ScratchDisk: scratchSerial, Verity: verityOf(img), Network: guest, Filled: map[int]bool{},
	})
	if err != nil {
		return err
	}
	request.Id = containerID
	for _, token := range []*uint64{&request.Process.Stdout, &request.Process.Stderr} {
		conn, t, err := s.sandbox.Stream()
		if err != nil {
			return err
		}
		*token = t
		go func() {
			io.Copy(io.Discard, conn)
			conn.Close()
		}()
	}
	if _, err := s.sandbox.CreateContainer(ctx, request); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	if _, err := s.sandbox.StartContainer(ctx, &agent.StartContainerRequest{Id: containerID}); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	if _, err := s.sandbox.Wait(ctx, containerID, ""); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	if err := s.sandbox.RemoveContainer(ctx, containerID); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	return nil
}

// rehearsalImage makes a root filesystem with one program, which ends at once.
func rehearsalImage(ctx context.Context, dir string) (*os.File, *rootfs.Image, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, d := range []string{"dev", "etc", "proc", "sys", "tmp"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
			return nil, nil, err
		}
	}
	program := nothing()
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "rehearse", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, nil, err
	}
	if err := w.Close(); err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(archive.Bytes())
	path := filepath.Join(dir, "root")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	img, err := rootfs.Build(ctx, file, []rootfs.Layer{{
		Open:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil },
		Size:   int64(archive.Len()),
		DiffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])},
	}}, rootfs.Options{TempDir: dir})
	if err != nil {
		return nil, nil, err
	}
	readable, err := os.Open(path)
	return readable, img, err
}

// nothing is the smallest program (ELF64, x86-64): exit_group(0).
func nothing() []byte {
	code := []byte{0x31, 0xff, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05} // xor edi, edi; mov eax, 231; syscall
	const base, head = 0x400000, 64 + 56
	size := uint64(head + len(code))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + head), uint64(64), uint64(0), uint32(0), // type, machine, version, entry, program and section headers, flags
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000), // PT_LOAD, read and execute
	} {
		binary.Write(&b, binary.LittleEndian, v)
	}
	b.Write(code)
	return b.Bytes()
}

// hurry gives the machine the scheduling of ordinary processes: it was made when nobody else
// wanted the processor.
func (s *Standby) hurry() {
	for _, pid := range []int{os.Getpid(), s.sandbox.VM().Info().PID} {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
			}
		}
	}
}

// claimed makes the machine that has waited this container's, if there is one that still works.
func (m *Monitor) claimed(ctx context.Context, b *machine, cfg *sandbox.Config) bool {
	s := m.standby
	m.standby = nil
	if s == nil {
		return false
	}
	ctx, span := trace.Start(ctx, "claim")
	defer span.End()
	if err := s.sandbox.Claim(ctx, *cfg); err != nil {
		s.release() // before the next machine is given the same network
		fmt.Fprintf(os.Stderr, "cloning a template instead of using the machine that waited: %v\n", err)
		return false
	}
	b.later(s.release)
	b.sandbox, b.boot = s.sandbox, "pool "+s.key
	return true
}
