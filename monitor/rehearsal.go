package monitor

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
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

// rehearsalFiles is what else is in there. A name that ends with a slash is a directory's.
var rehearsalFiles = []string{"dev/", "etc/", "etc/exercise", "proc/", "sys/", "tmp/", "usr/", "usr/exercise"}

// setup is the setup of a machine that waits.
func (s *Standby) setup() *agent.SetupRequest {
	r := &agent.SetupRequest{Hostname: "rehearsal", Network: GuestNetwork(&s.guest)}
	if s.tap {
		s.setups++
		if r.Network = takenNetwork(s.setups); s.setups == 2 {
			r.Network = &agent.Network{} // a container without a network
		}
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

// stage is where a rehearsed container runs: what the machine is given for it, and the request. The
// request has no streams yet. clear frees what the stage has taken.
type stage struct {
	claim   sandbox.Config
	request *agent.CreateContainerRequest
	clear   func()
}

// rehearse runs a container of no use some times, with everything that a start does, and some of what
// comes after it: on a share's root where the machine is for engines, which have a tap, else on disks.
func (s *Standby) rehearse(ctx context.Context, places *place.Places, rounds int) error {
	set := s.sharedStage
	if !s.tap {
		root, img, err := rehearsalImage(ctx, s.dir)
		if err != nil {
			return fmt.Errorf("make the image of the rehearsal: %w", err)
		}
		defer os.Remove(root.Name())
		defer root.Close()
		set = func(ctx context.Context, cfg *container.Config) (*stage, error) {
			return s.diskStage(ctx, places, root, img, cfg)
		}
	}
	for round := range rounds {
		cfg := &container.Config{
			ID: containerID, Hostname: "rehearsal", ShmBytes: 64 << 20, TTY: round == 1,
			Process: container.Process{Args: []string{rehearsalProgram, "exercise"}, Env: []string{"PATH=/"}, Dir: "/"},
		}
		st, err := set(ctx, cfg)
		if err == nil {
			err = s.play(ctx, st, round > 0)
			st.clear()
		}
		if err != nil {
			return fmt.Errorf("rehearse: %w", err)
		}
	}
	return nil
}

// play runs a container. With visited, others come to see it.
func (s *Standby) play(ctx context.Context, st *stage, visited bool) error {
	if err := s.sandbox.Claim(ctx, st.claim); err != nil {
		return err
	}
	st.request.Id, st.request.Ephemeral = containerID, true
	var said words
	if err := s.streams(st.request.Process, &said); err != nil {
		return err
	}
	if _, err := s.sandbox.CreateContainer(ctx, st.request); err != nil {
		return err
	}
	if _, err := s.sandbox.StartContainer(ctx, &agent.StartContainerRequest{Id: containerID}); err != nil {
		return err
	}
	if visited {
		s.visit(ctx, st.request.Process)
	}
	exit, err := s.sandbox.Wait(ctx, containerID, "")
	if err != nil {
		return err
	}
	if exit.ExitCode != 0 {
		fmt.Fprintf(os.Stderr, "a part of the rehearsal failed, which makes starts slower: %s\n", said.text())
	}
	return s.sandbox.RemoveContainer(ctx, containerID)
}

// diskStage is that of images: a read-only disk with a writable one over it.
func (s *Standby) diskStage(ctx context.Context, places *place.Places, root *os.File, img *rootfs.Image, cfg *container.Config) (_ *stage, err error) {
	path := filepath.Join(s.dir, "scratch")
	if err := storage.NewBlanks(filepath.Join(places.Cache, "blank")).Clone(ctx, rehearsalDisk, path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	scratch, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	request, err := spec.Build(cfg, spec.Environment{
		RootDisk: rootSerial, ScratchDisk: scratchSerial, Verity: VerityOf(img), Network: &s.guest, Filled: map[int]bool{},
	})
	if err != nil {
		scratch.Close()
		return nil, err
	}
	disks := []vmm.Disk{{Serial: rootSerial, File: root, ReadOnly: true}, {Serial: scratchSerial, File: scratch, Sync: vmm.SyncUnsafe}}
	return &stage{
		claim:   sandbox.Config{VM: vmm.Config{Disks: disks}, Setup: s.setup()},
		request: request,
		clear:   func() { scratch.Close(); os.Remove(path) },
	}, nil
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
	for _, name := range rehearsalFiles {
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
