package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/api/wire"
)

// shareMsize is the largest 9p message, bytes: what virtio-9p carries at once.
const shareMsize = "512000"

// Setup makes this machine unique and connects it. The order matters: until the
// entropy is credited every clone of a template draws the same random
// numbers, so that comes first.
func (s *service) Setup(ctx context.Context, r *api.SetupRequest) (*api.SetupResponse, error) {
	received := monotonic()
	if r.Version != wire.Version {
		return nil, fail(codes.FailedPrecondition, fmt.Errorf("the host speaks version %d of the protocol, this guest %d (use a guest image of the same release)", r.Version, wire.Version))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A machine that has waited for its container is set up again: as long as there is
	// none, nothing depends on what was set. With containers it is once in each session.
	if s.isSetUp && len(s.containers) > 0 && !s.fresh {
		return nil, fail(codes.FailedPrecondition, errors.New("the sandbox is already set up and has a container"))
	}
	// A guard's machine is no clone, and takes no random numbers of the host's.
	if s.protector == nil {
		if err := addEntropy(r.Entropy); err != nil {
			return nil, err
		}
	}
	if r.ClockUnixNs > 0 {
		ts := unix.NsecToTimespec(r.ClockUnixNs)
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return nil, fmt.Errorf("set clock: %w", err)
		}
	}
	if err := setNames(r.Hostname, r.Domainname); err != nil {
		return nil, err
	}
	if err := writeSysctls(unix.AT_FDCWD, "/proc/sys/", r.Sysctls); err != nil {
		return nil, err
	}
	if err := s.connect(r.Network); err != nil {
		return nil, err
	}
	for _, share := range r.Shares {
		// One that an earlier setup has mounted is still there: a second mount is refused by its device.
		if s.shares[share.Tag] {
			continue
		}
		if err := mountShare(share.Tag); err != nil {
			return nil, err
		}
		s.shares[share.Tag] = true
	}
	if s.memoryBytes == 0 {
		var err error
		if s.memoryBytes, err = totalMemory(); err != nil {
			return nil, err
		}
	}
	if err := limitContainers(s.memoryBytes); err != nil {
		return nil, err
	}
	s.isSetUp, s.fresh = true, false
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, os.NewSyscallError("uname", err)
	}
	return &api.SetupResponse{
		Version:       wire.Version,
		KernelRelease: unix.ByteSliceToString(name.Release[:]),
		ReadyNs:       s.readyNS,
		ReceivedNs:    received,
		DoneNs:        monotonic(),
		AgentVersion:  s.version,
	}, nil
}

// addEntropy credits the host's random bytes and has the kernel draw new keys
// from them at once.
func addEntropy(seed []byte) error {
	if len(seed) < 32 || len(seed) > 4096 {
		return fail(codes.InvalidArgument, fmt.Errorf("%d bytes of entropy: want 32 to 4096", len(seed)))
	}
	fd, err := unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/urandom: %w", err)
	}
	defer unix.Close(fd)
	// struct rand_pool_info: bits, bytes, data.
	pool := binary.NativeEndian.AppendUint32(nil, uint32(8*len(seed)))
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(seed)))
	pool = append(pool, seed...)
	if err := ioctl(fd, unix.RNDADDENTROPY, pool); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	if err := ioctl(fd, unix.RNDRESEEDCRNG, nil); err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	return nil
}

// setNames names the calling thread's UTS namespace.
func setNames(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return fmt.Errorf("set hostname %q: %w", host, err)
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return fmt.Errorf("set domain name %q: %w", domain, err)
		}
	}
	return nil
}

// writeSysctls writes kernel parameters, whose names have dots between their parts,
// below prefix.
func writeSysctls(dir int, prefix string, values map[string]string) error {
	for key, value := range values {
		path, ok := sysctlPath(key)
		if !ok {
			return fail(codes.InvalidArgument, fmt.Errorf("kernel parameter %q is not a name", key))
		}
		if err := writeFileAt(dir, prefix+path, value); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return fail(codes.InvalidArgument, fmt.Errorf("set kernel parameter %s: the guest's kernel has none of this name", key))
			}
			var errno unix.Errno
			errors.As(err, &errno)
			return fail(codes.InvalidArgument, fmt.Errorf("set kernel parameter %s to %q: %w", key, value, errno))
		}
	}
	return nil
}

// sysctlPath turns net.ipv4.conf.eth0/1.forwarding into
// net/ipv4/conf/eth0.1/forwarding, as sysctl(8) does.
func sysctlPath(key string) (string, bool) {
	b := []byte(key)
	first := strings.IndexAny(key, "./")
	if first < 0 {
		return "", false
	}
	if b[first] == '.' {
		for i, c := range b {
			switch c {
			case '.':
				b[i] = '/'
			case '/':
				b[i] = '.'
			}
		}
	}
	path := string(b)
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0 {
			return "", false
		}
	}
	return path, true
}

// mountShare mounts a 9p export where containers' mounts of type "share" are
// taken from.
func mountShare(tag string) error {
	if !isName(tag) {
		return fail(codes.InvalidArgument, fmt.Errorf("share %q: not a tag", tag))
	}
	dir := sharesDir + "/" + tag
	if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make directory %s: %w", dir, err)
	}
	// Reads and writes are not cached, so that both sides see each other's changes at
	// once; only what a program maps into its memory is, since databases need that.
	err := unix.Mount(tag, dir, "9p", 0, "trans=virtio,version=9p2000.L,access=client,cache=mmap,msize="+shareMsize)
	if err != nil {
		return fmt.Errorf("mount share %q (does the VM have such a 9p export?): %w", tag, err)
	}
	return nil
}

// isName says whether s can be one component of a path.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\x00")
}

// replyTime is how long a reply gets to leave before what carries it ends.
const replyTime = 20 * time.Millisecond

// parkTime bounds how long a container's output may take to be handed over before a session
// ends: a host that does not read keeps it.
const parkTime = 5 * time.Second

// Detach ends the session, see the protocol.
func (s *service) Detach(ctx context.Context, r *api.DetachRequest) (*api.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) > 0 && !r.KeepContainers {
		return nil, fail(codes.FailedPrecondition, errors.New("the sandbox has a container"))
	}
	if len(r.Mark) < 16 || len(r.Mark) > 64 {
		return nil, fail(codes.InvalidArgument, fmt.Errorf("a mark of %d bytes: want 16 to 64", len(r.Mark)))
	}
	ctx, cancel := context.WithTimeout(ctx, parkTime)
	defer cancel()
	var parked []*stdio
	for _, c := range s.containers {
		p, err := c.alone()
		if err == nil {
			parked = append(parked, p.io)
			err = p.io.park(ctx)
		}
		if err != nil {
			for _, io := range parked {
				io.unpark()
			}
			return nil, err
		}
	}
	s.leaving, s.mark = true, r.Mark
	guard("detach", func() {
		time.Sleep(replyTime)
		s.port.Close()
	})
	return &api.Empty{}, nil
}

// alone returns the first process of a container that has no other that the host has
// started.
func (c *container) alone() (*process, error) {
	p, err := c.process("")
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.execs {
		if !e.hasExited() {
			return nil, fail(codes.FailedPrecondition, errors.New("a process that exec has added is still running"))
		}
	}
	if p.hasExited() {
		return nil, fail(codes.FailedPrecondition, errors.New("the container has ended"))
	}
	return p, nil
}

// Adopt connects a container that an earlier session has left.
func (s *service) Adopt(ctx context.Context, r *api.AdoptRequest) (*api.Empty, error) {
	tokens := &api.Process{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr}
	c, err := s.container(r.Id)
	if err != nil {
		s.discard(tokens)
		return nil, err
	}
	p, err := c.process("")
	if err != nil {
		s.discard(tokens)
		return nil, err
	}
	tokens.Terminal = p.io.tty != nil
	st, err := s.claim(ctx, tokens)
	if err != nil {
		return nil, err
	}
	if !p.io.attach(st) {
		st.close()
		return nil, fail(codes.FailedPrecondition, errors.New("the container belongs to this session already"))
	}
	if r.NewId != "" && r.NewId != r.Id {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !isName(r.NewId) || s.containers[r.NewId] != nil {
			return nil, fail(codes.InvalidArgument, fmt.Errorf("container %s cannot be called %q", r.Id, r.NewId))
		}
		delete(s.containers, r.Id)
		s.containers[r.NewId] = c
	}
	return &api.Empty{}, nil
}

// detached reports whether the session has ended because the host asked for it, and makes the
// port ready for another one.
func (s *service) detached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leaving {
		return false
	}
	s.leaving, s.fresh = false, true
	return s.port.reopen() == nil
}

// Shutdown ends every container, syncs, and powers the machine off.
func (s *service) Shutdown(ctx context.Context, _ *api.Empty) (*api.Empty, error) {
	s.mu.Lock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		if err := c.remove(ctx); err != nil {
			complain("remove container %s: %v", c.id, err)
		}
	}
	for _, dir := range []string{sharesDir, volumesDir} {
		names, _ := readDir(dir)
		for _, n := range names {
			unix.Unmount(dir+"/"+n, unix.MNT_DETACH)
		}
	}
	guard("power off", func() {
		// Lets the reply leave first where the host still listens.
		time.Sleep(2 * time.Millisecond)
		powerOff()
	})
	return &api.Empty{}, nil
}
