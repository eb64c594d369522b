package monitor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/cgroup"
	"manis/container"
	"manis/network/netns"
	"manis/place"
	"manis/pool"
	"manis/sandbox"
	"manis/trace"
)

// claimRequest is the message by which a front end claims a machine for a container or for a pod. With it come a
// descriptor (the connection to the front end, or the pod's listening socket) and the file for the machine's
// owner's own messages.
type claimRequest struct {
	ID   string `json:"id,omitempty"`
	Root string `json:"root,omitempty"`
	Pod  string `json:"pod,omitempty"` // the pod's directory
	// Order is what a shim of containerd's is told. Without it the pod is one of the OCI runtime's.
	Order json.RawMessage `json:"order,omitempty"`
}

// maxClaim bounds it, bytes: one message of a socket holds it.
const maxClaim = 48 << 10

// PodClaim is what a pod claims a machine for.
type PodClaim struct {
	// Dir is the pod's directory.
	Dir string
	// Listener is the socket on which the pod is served. It belongs to the one who is given the claim.
	Listener *os.File
	// Order is JSON that says what the shim serves which the process is to be. Nil: it is a pod of the OCI runtime.
	Order json.RawMessage
}

// claimTime bounds how long a waiting machine may take to accept: it only takes a lock.
const claimTime = 2 * time.Second

// claim gives a container to the first waiting machine that takes it.
func claim(ctx context.Context, sockets []string, c *container.Container, front, log *os.File) bool {
	_, ok := claimAny(ctx, sockets, claimRequest{ID: c.ID, Root: c.Dir()}, front, log, nil)
	return ok
}

// ClaimPod gives a pod to a machine that waits and is as cfg asks for. It returns the processes that are the pod's then: the one that
// serves it and the machine's. There is none where nobody waits, or in other namespaces than
// the caller's: files and processes have other names there.
func ClaimPod(ctx context.Context, places *place.Places, cfg *container.Config, c *PodClaim, log *os.File) (pids []int, ok bool) {
	if _, err := os.Stat(places.Pool()); err != nil {
		return nil, false
	}
	asked := podSize(cfg)
	kind, err := PoolKind(ctx, places, &asked)
	if err != nil {
		return nil, false
	}
	sockets, _ := filepath.Glob(filepath.Join(places.Pool(), kind.Key+"-*"))
	pids, ok = claimAny(ctx, sockets, claimRequest{Pod: c.Dir, Order: c.Order}, c.Listener, log, inOurNamespaces)
	if ok {
		// A container or service of the daemon's may end, with all that is in its groups.
		cgroup.Take(pids...)
	}
	return pids, ok
}

// MissedPod is Missed for a pod.
func MissedPod(places *place.Places, cfg *container.Config) {
	asked := podSize(cfg)
	pool.Miss(places.Pool(), &asked)
}

// podSize is what a pod's machine is asked for by in the pool.
func podSize(cfg *container.Config) container.Config {
	size := container.Config{Accel: cfg.Accel, Resources: cfg.Resources}
	size.Network.Mode = pool.TapMode
	return size
}

// inOurNamespaces reports whether a process sees the host's files and processes as this one does, and is the same user there.
func inOurNamespaces(pid int) bool {
	for _, name := range []string{"mnt", "pid", "user"} {
		own, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			return false
		}
		if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name)); err != nil || its != own {
			return false
		}
	}
	return true
}

// claimAny claims the first machine that lets itself be claimed and that suits, and returns its owner's process
// and its own.
func claimAny(ctx context.Context, sockets []string, r claimRequest, file, log *os.File, suits func(pid int) bool) (pids []int, ok bool) {
	if len(sockets) == 0 {
		return nil, false
	}
	ctx, span := trace.Start(ctx, "claim")
	defer span.End()
	request, err := json.Marshal(r)
	if err != nil || len(request) > maxClaim {
		return nil, false
	}
	rights := unix.UnixRights(int(file.Fd()), int(log.Fd()))
	for _, path := range sockets {
		dialed, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			if errors.Is(err, unix.ECONNREFUSED) {
				os.Remove(path) // its process was killed
			}
			continue
		}
		conn := dialed.(*net.UnixConn)
		owner, machine, err := askFor(conn, request, rights, suits)
		conn.Close()
		if err == nil {
			return []int{owner, machine}, true
		}
	}
	return nil, false
}

// askFor makes one claim.
func askFor(conn *net.UnixConn, request, rights []byte, suits func(pid int) bool) (owner, machine int, err error) {
	conn.SetDeadline(time.Now().Add(claimTime))
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return 0, 0, errors.Join(cerr, err)
	}
	if suits != nil && !suits(int(cred.Pid)) {
		return 0, 0, errors.New("it does not suit")
	}
	if _, _, err := conn.WriteMsgUnix(request, rights, nil); err != nil {
		return 0, 0, err
	}
	answer, err := bufio.NewReader(io.LimitReader(conn, 16)).ReadString('\n')
	if err == nil {
		machine, err = strconv.Atoi(strings.TrimSpace(answer))
	}
	return int(cred.Pid), machine, err
}

// claimedFor is what somebody has claimed a machine for.
type claimedFor struct {
	request   claimRequest
	file, log *os.File
}

// accept reads a claim, which only this user may make.
func (s *Standby) accept(conn *net.UnixConn, places *place.Places, pods PodOwners) (_ *claimedFor, err error) {
	conn.SetDeadline(time.Now().Add(claimTime))
	uid, err := pool.Peer(conn)
	if err != nil {
		return nil, err
	}
	if uid != os.Geteuid() {
		return nil, errors.New("claimed by another user")
	}
	b, oob := make([]byte, maxClaim), make([]byte, unix.CmsgSpace(8))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("a claim without descriptors")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, errors.New("a claim without its two descriptors")
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	c := &claimedFor{file: os.NewFile(uintptr(fds[0]), "control"), log: os.NewFile(uintptr(fds[1]), "log")}
	if err = json.Unmarshal(b[:n], &c.request); err == nil {
		// A machine with a tap is for pods, and only such a one.
		switch {
		case s.tap != (c.request.Pod != ""), c.request.Order != nil && pods.Shim == nil:
			err = errors.New("a claim for something else than this machine is for")
		case s.tap && filepath.Dir(c.request.Pod) != places.Pods(), !s.tap && filepath.Dir(c.request.Root) != places.Containers():
			err = errors.New("a claim of another installation")
		}
	}
	if err != nil {
		c.file.Close()
		c.log.Close()
		return nil, err
	}
	return c, nil
}

// PodOwner is a pod's process from the claim on: it serves the pod, and owns the machine.
type PodOwner func(ctx context.Context, places *place.Places, c *PodClaim, s *Standby) error

// PodOwners are what a process with a waiting machine can become.
type PodOwners struct {
	// Pod serves a pod of the OCI runtime.
	Pod PodOwner
	// Shim serves containerd; nil: this program has no shim.
	Shim PodOwner
}

func (o *PodOwners) of(c *PodClaim) PodOwner {
	if c.Order != nil {
		return o.Shim
	}
	return o.Pod
}

// Claim makes the machine that has waited one of this configuration, but for the taps and shares, which its owner
// gives it.
func (s *Standby) Claim(ctx context.Context, cfg sandbox.Config) error {
	return s.sandbox.Claim(ctx, cfg)
}

// Sandbox is the machine. Release ends it, too.
func (s *Standby) Sandbox() *sandbox.Sandbox { return s.sandbox }

// Spare is the tap behind the machine's card, nil for machines without one.
func (s *Standby) Spare() *netns.Spare { return s.spare }

// Boot says where the machine came from, see container.State.
func (s *Standby) Boot() string { return "pool " + s.key }
