package monitor

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
	"manis/image/rootfs"
	"manis/place"
	"manis/sandbox"
	"manis/storage"
	"manis/vmm"
)

// standbyCode is how much translated code a machine that rehearses may keep: that of the
// rehearsal and that of the container to come. With as much as other machines have, the second would
// push the first out.
const standbyCode = 128 << 20

// rehearsalDisk is the size of the writable layer in a rehearsal, bytes.
const rehearsalDisk = 32 << 20

// rehearsalProgram is where the program of package exercise, which is this one, lies in the container.
const rehearsalProgram = "/exercise"

// setup is the setup of a machine that waits.
func (s *Standby) setup() *agent.SetupRequest {
	r := &agent.SetupRequest{Hostname: "rehearsal", Network: guestNetwork(&s.guest)}
	if s.tap {
		s.setups++
		r.Network = takenNetwork(s.setups)
	}
	return r
}

// takenNetwork is the nth network as a namespace may have it: the machine to come has to leave the one
// before, too.
func takenNetwork(n int) *agent.Network {
	const main, boot, unicast = unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RTN_UNICAST
	return &agent.Network{
		Interfaces: []*agent.Interface{{
			Name: nicDevice, Mac: fmt.Sprintf("02:00:00:00:01:%02x", n), Mtu: 1500,
			Addresses: []*agent.Address{
				{Prefix: fmt.Sprintf("192.0.2.%d/24", n+1), Broadcast: "192.0.2.255"}, {Prefix: fmt.Sprintf("2001:db8::%d/64", n+1)},
			},
			Sysctls: map[string]string{"net/ipv6/conf/" + nicDevice + "/accept_ra": "0"},
		}},
		Routes: []*agent.Route{
			{Destination: "0.0.0.0/0", Gateway: "192.0.2.1", Type: unicast, Device: nicDevice, Table: main, Protocol: boot},
			{Destination: "::/0", Gateway: "2001:db8::1", Type: unicast, Device: nicDevice, Table: main, Protocol: boot, Metric: 1024},
		},
	}
}

// rehearse runs a container of no use some times, with everything that a start does, and
// some of what comes after it.
func (s *Standby) rehearse(ctx context.Context, places *place.Places, rounds int) error {
	root, img, err := rehearsalImage(ctx, s.dir)
	if err != nil {
		return fmt.Errorf("make the image of the rehearsal: %w", err)
	}
	defer os.Remove(root.Name())
	defer root.Close()
	for round := range rounds {
		if err := s.rehearseOnce(ctx, places, root, img, round); err != nil {
			return fmt.Errorf("rehearse: %w", err)
		}
	}
	return nil
}

func (s *Standby) rehearseOnce(ctx context.Context, places *place.Places, root *os.File, img *rootfs.Image, round int) error {
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
	disks := []vmm.Disk{{Serial: rootSerial, File: root, ReadOnly: true}, {Serial: scratchSerial, File: scratch, Sync: vmm.SyncUnsafe}}
	if err := s.sandbox.Claim(ctx, sandbox.Config{VM: vmm.Config{Disks: disks}, Setup: s.setup()}); err != nil {
		return err
	}
	cfg := &container.Config{
		ID: containerID, Hostname: "rehearsal", ShmBytes: 64 << 20, TTY: round == 1,
		Process: container.Process{Args: []string{rehearsalProgram, "exercise"}, Env: []string{"PATH=/"}, Dir: "/"},
	}
	request, err := spec.Build(cfg, spec.Environment{
		RootDisk: rootSerial, ScratchDisk: scratchSerial, Verity: verityOf(img), Network: &s.guest, Filled: map[int]bool{},
	})
	if err != nil {
		return err
	}
	request.Id, request.Ephemeral = containerID, true
	var said words
	if err := s.streams(request.Process, &said); err != nil {
		return err
	}
	if _, err := s.sandbox.CreateContainer(ctx, request); err != nil {
		return err
	}
	if _, err := s.sandbox.StartContainer(ctx, &agent.StartContainerRequest{Id: containerID}); err != nil {
		return err
	}
	if round > 0 {
		s.visit(ctx, request.Process)
	}
	exit, err := s.sandbox.Wait(ctx, containerID, "")
	if err != nil {
		return err
	}
	if exit.ExitCode != 0 {
		fmt.Fprintf(os.Stderr, "a part of the rehearsal failed, which makes starts slower: %s\n", said.text())
	}
	if err := s.sandbox.RemoveContainer(ctx, containerID); err != nil || !s.shared {
		return err
	}
	return s.rehearseShared(ctx, request)
}

// sharedRoot is the entry of the share of host directories that is a container's root in a rehearsal, and
// sharedFile one that is a file in it.
const (
	sharedRoot = "root"
	sharedFile = "file"
)

// share prepares what the host's directories are tried with.
func (s *Standby) share(vm vmm.Config) (vmm.Config, error) {
	root := filepath.Join(s.dir, "shared")
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		return vm, err
	}
	if err := copyProgram(filepath.Join(root, rehearsalProgram)); err != nil {
		return vm, err
	}
	file := filepath.Join(s.dir, "file")
	if err := os.WriteFile(file, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		return vm, err
	}
	// The jail's mounts hide what else is in its directory.
	vm.RunDir = filepath.Join(s.dir, "vm")
	if err := os.Mkdir(vm.RunDir, 0o700); err != nil {
		return vm, err
	}
	vm.Shares = slices.Clone(vm.Shares)
	for i := range vm.Shares {
		if vm.Shares[i].Tag == bindsTag {
			vm.Shares[i].Entries = []vmm.ShareEntry{{Name: sharedRoot, HostPath: root}, {Name: sharedFile, HostPath: file, File: true}}
			vm.Shares[i].Grows = true // as a pod's
			s.shared = true
		}
	}
	return vm, nil
}

func copyProgram(path string) error {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer program.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, program)
	return errors.Join(err, f.Close())
}

// rehearseShared runs a container as engines have them: its root, and files in it, are the host's.
func (s *Standby) rehearseShared(ctx context.Context, like *agent.CreateContainerRequest) error {
	setup := s.setup()
	setup.Shares = []*agent.Share{{Tag: bindsTag}}
	if err := s.sandbox.Claim(ctx, sandbox.Config{Setup: setup}); err != nil {
		return err
	}
	request := proto.Clone(like).(*agent.CreateContainerRequest)
	request.Rootfs = &agent.RootFS{Share: bindsTag + "/" + sharedRoot}
	request.KeepMountOrder, request.FindCommand = true, true
	request.Files = nil
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		request.Mounts = append(request.Mounts, &agent.Mount{
			Destination: "/etc/" + name, Type: "share", Source: bindsTag + "/" + sharedFile, Options: []string{"rbind", "rprivate"},
		})
	}
	var said words
	if err := s.streams(request.Process, &said); err != nil {
		return err
	}
	if _, err := s.sandbox.CreateContainer(ctx, request); err != nil {
		return err
	}
	if _, err := s.sandbox.StartContainer(ctx, &agent.StartContainerRequest{Id: containerID}); err != nil {
		return err
	}
	if _, err := s.sandbox.Wait(ctx, containerID, ""); err != nil {
		return err
	}
	return s.sandbox.RemoveContainer(ctx, containerID)
}

// visit does with the running container what users do. What fails, because the
// container has ended meanwhile for instance, does not matter.
func (s *Standby) visit(ctx context.Context, like *agent.Process) {
	p := &agent.Process{
		Args: []string{rehearsalProgram, "exercise", "child"}, Env: like.Env, Cwd: "/",
		Capabilities: like.Capabilities, Seccomp: like.Seccomp, SeccompFlags: like.SeccompFlags,
	}
	if s.streams(p, io.Discard) == nil {
		if _, err := s.sandbox.Exec(ctx, &agent.ExecRequest{Id: containerID, ExecId: "visit", Process: p}); err == nil {
			s.sandbox.Wait(ctx, containerID, "visit")
		}
	}
	s.sandbox.Stats(ctx, containerID)
	s.sandbox.Processes(ctx, containerID)
}

// streams connects a process: it reads nothing, and its errors are written to w.
func (s *Standby) streams(p *agent.Process, w io.Writer) error {
	open := func(token *uint64, use func(net.Conn)) error {
		conn, t, err := s.sandbox.Stream()
		if err == nil {
			*token = t
			go use(conn)
		}
		return err
	}
	drain := func(w io.Writer) func(net.Conn) {
		return func(conn net.Conn) {
			io.Copy(w, conn)
			conn.Close()
		}
	}
	if p.Terminal {
		err := open(&p.Stdout, func(conn net.Conn) {
			conn.Write([]byte{4}) // end of input, as typed
			drain(w)(conn)
		})
		p.Stdin = p.Stdout // both ways
		return err
	}
	if err := open(&p.Stdin, func(conn net.Conn) { conn.Close() }); err != nil {
		return err
	}
	if err := open(&p.Stdout, drain(io.Discard)); err != nil {
		return err
	}
	return open(&p.Stderr, drain(w))
}

// words keeps the end of what a program said. The program is ours, but the machine
// may be broken: it is text from a guest.
type words struct {
	mu   sync.Mutex
	last []byte
}

const maxWords = 512

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = append(w.last, b...)
	w.last = slices.Clone(w.last[max(0, len(w.last)-maxWords):])
	return len(b), nil
}

func (w *words) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, string(w.last))
}

// rehearsalImage makes a root filesystem with one program, which is this one.
func rehearsalImage(ctx context.Context, dir string) (*os.File, *rootfs.Image, error) {
	layer, digest, err := rehearsalLayer(dir)
	if err != nil {
		return nil, nil, err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, "root")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	img, err := rootfs.Build(ctx, file, []rootfs.Layer{{
		Open:   func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(layer, 0, size)), nil },
		Size:   size,
		DiffID: v1.Hash{Algorithm: "sha256", Hex: digest},
	}}, rootfs.Options{TempDir: dir})
	if err != nil {
		return nil, nil, err
	}
	readable, err := os.Open(path)
	return readable, img, err
}

// rehearsalLayer writes the layer of that filesystem, and returns its digest too.
func rehearsalLayer(dir string) (_ *os.File, digest string, err error) {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, "", err
	}
	defer program.Close()
	info, err := program.Stat()
	if err != nil {
		return nil, "", err
	}
	layer, err := os.CreateTemp(dir, "layer")
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			layer.Close()
			os.Remove(layer.Name())
		}
	}()
	h := sha256.New()
	w := tar.NewWriter(io.MultiWriter(layer, h))
	for _, name := range []string{"dev/", "etc/", "etc/exercise", "proc/", "sys/", "tmp/", "usr/", "usr/exercise"} {
		head := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}
		if name[len(name)-1] == '/' {
			head.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(head); err != nil {
			return nil, "", err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: rehearsalProgram[1:], Mode: 0o755, Size: info.Size()}); err != nil {
		return nil, "", err
	}
	if _, err := io.Copy(w, program); err != nil {
		return nil, "", err
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	return layer, hex.EncodeToString(h.Sum(nil)), nil
}
