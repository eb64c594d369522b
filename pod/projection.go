package pod

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
	"manis/bundle"
	"manis/origin"
	"manis/sandbox"
	"manis/vmm"
)

// projections are the pod's volumes that the kubelet keeps up to date: ConfigMaps, Secrets, tokens, the downward API. A 9p client is
// not told of changes, and so programs that wait for one would never hear of it. So the machine has a copy of such a volume
// in memory; this end watches the host's directory, and sends what is in it when that has changed.
type projections struct {
	pod *Pod

	// mu is held from reading a volume until the machine has what was read: what was read last is there last.
	mu       sync.Mutex
	list     []*projection
	made     int
	watch    *os.File // inotify(7); nil: nothing is watched
	watchFD  int      // its descriptor, of which File.Fd would make one that blocks
	watching sync.WaitGroup
	stop     context.CancelFunc
	closed   bool
}

// projection is one of them.
type projection struct {
	name   string
	volume volume
	ids    *vmm.IDMap
	watch  int32 // its descriptor
	users  int   // mounts
	last   *agent.Projection
}

// watched are the changes by which the kubelet puts a content in place of another, in the volume's directory: names that
// come and go, and owners, which it sets last.
const watched = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_ATTRIB | unix.IN_ONLYDIR

// take makes copies of those of the container's volumes that can be ones. The others stay what they are, live.
func (s *projections) take(m *member, plan *bundle.Plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := maxContent
	plan.Binds = slices.DeleteFunc(plan.Binds, func(b bundle.Bind) bool {
		if !b.Projected {
			return false
		}
		name, size, err := s.open(m, &b, room)
		if err != nil {
			fmt.Fprintf(os.Stderr, "container %s: programs will not be told when %s changes, only see it: %v\n", m.id, b.HostPath, err)
			return false
		}
		room -= size
		source := bindsTag + "/" + b.Name
		for _, mount := range plan.Create.Mounts {
			if mount.Type == "share" && mount.Source == source {
				mount.Type, mount.Source = "projection", name
			}
		}
		return true
	})
}

// open begins with a volume for a container, and tells how many bytes it has; s.mu is held.
func (s *projections) open(m *member, b *bundle.Bind, room int) (name string, size int, err error) {
	v, ids := volume{dir: b.HostPath}, idMap(*b)
	if b.Opened != nil {
		is, err := origin.Of(b.Opened)
		if err != nil {
			return "", 0, err
		}
		v.is = &is
	}
	c, err := readProjected(v, ids, room)
	if err != nil {
		return "", 0, err
	}
	for _, p := range s.list {
		if reflect.DeepEqual(p.volume, v) && reflect.DeepEqual(p.ids, ids) {
			p.users++
			m.projected = append(m.projected, p)
			return p.name, c.size, nil
		}
	}
	if err := s.start(); err != nil {
		return "", 0, err
	}
	wd, err := unix.InotifyAddWatch(s.watchFD, v.dir, watched)
	if err != nil {
		return "", 0, fmt.Errorf("watch it: %w", err)
	}
	p := &projection{name: "projection" + strconv.Itoa(s.made), volume: v, ids: ids, watch: int32(wd), users: 1, last: &agent.Projection{Files: c.files}}
	s.made++
	s.list = append(s.list, p)
	m.projected = append(m.projected, p)
	return p.name, c.size, nil
}

// start begins to watch; s.mu is held.
func (s *projections) start() error {
	if s.closed {
		return ErrGone
	}
	if s.watch != nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch files (fs.inotify.max_user_instances bounds how many processes may): %w", err)
	}
	s.watch, s.watchFD = os.NewFile(uintptr(fd), "inotify"), fd
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.watching.Add(1)
	go s.follow(ctx, s.watch)
	return nil
}

// with has a request that makes a container carry what its volumes hold.
func (s *projections) with(m *member, r *agent.CreateContainerRequest, create func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := maxContent
	for _, p := range m.projected {
		if slices.ContainsFunc(r.Projections, func(has *agent.Projection) bool { return has.Name == p.name }) {
			continue
		}
		c, err := readProjected(p.volume, p.ids, room)
		if err != nil {
			return fmt.Errorf("read the volume %s: %w", p.volume.dir, err)
		}
		room -= c.size
		p.last = &agent.Projection{Name: p.name, Files: c.files}
		r.Projections = append(r.Projections, p.last)
	}
	return create()
}

// drop says that a container does not use volumes any more.
func (s *projections) drop(list []*projection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range list {
		if p.users--; p.users > 0 {
			continue
		}
		s.list = slices.DeleteFunc(s.list, func(o *projection) bool { return o == p })
		if s.watch != nil && !slices.ContainsFunc(s.list, func(o *projection) bool { return o.watch == p.watch }) {
			// One that the kernel has ended, with its directory, is an error without meaning.
			unix.InotifyRmWatch(s.watchFD, uint32(p.watch))
		}
	}
}

// close ends the watching. The machine has ended.
func (s *projections) close() {
	s.mu.Lock()
	s.closed = true
	watch := s.watch
	s.watch = nil
	if s.stop != nil {
		s.stop()
	}
	s.mu.Unlock()
	if watch != nil {
		watch.Close()
	}
	s.watching.Wait()
}

// follow sends what has changed until the pod ends.
func (s *projections) follow(ctx context.Context, watch *os.File) {
	defer s.watching.Done()
	b := make([]byte, 64<<10)
	for {
		n, err := watch.Read(b)
		if err != nil {
			return
		}
		s.refresh(ctx, changedIn(b[:n]))
	}
}

// changedIn are the watches that events are of; nil: events were lost.
func changedIn(b []byte) map[int32]bool {
	changed := make(map[int32]bool)
	for len(b) >= unix.SizeofInotifyEvent {
		wd, mask, length := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
		if mask&unix.IN_Q_OVERFLOW != 0 {
			return nil
		}
		changed[wd] = true
		b = b[min(len(b), unix.SizeofInotifyEvent+int(length)):]
	}
	return changed
}

// Bounds of sending a volume.
const (
	publishTime = 10 * time.Second // for one try
	publishAt   = time.Second      // between the first and the second, and then twice as long each time
	maxPublish  = 5

	settleTime = time.Second // until a volume that the kubelet has not done with is sent as it is
	settleStep = 2 * time.Millisecond
)

// errChanging says that a volume was not sent, for the kubelet is not done with it.
var errChanging = errors.New("it is changing")

// refresh sends the volumes of these watches, with nil all, as far as they have changed.
func (s *projections) refresh(ctx context.Context, changed map[int32]bool) {
	wait := publishAt
	for range maxPublish {
		again := s.publish(ctx, changed)
		if len(again) == 0 || ctx.Err() != nil {
			return
		}
		changed = again
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait *= 2
	}
}

// publish tries it once, and returns the watches of those for which it has failed.
func (s *projections) publish(ctx context.Context, changed map[int32]bool) (failed map[int32]bool) {
	s.mu.Lock()
	list := slices.Clone(s.list)
	s.mu.Unlock()
	failed = make(map[int32]bool)
	for _, p := range list {
		if changed != nil && !changed[p.watch] {
			continue
		}
		if err := s.publishSettled(ctx, p); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "the containers that have the volume %s keep what it held before: %v\n", p.volume.dir, err)
			failed[p.watch] = true
		}
	}
	return failed
}

// publishSettled sends a volume once the kubelet is done with it: what is sent halfway makes the machine remove the old directory
// before it has the new links, and programs that wait for changes hear of them in another order than on a host.
func (s *projections) publishSettled(ctx context.Context, p *projection) error {
	end := time.Now().Add(settleTime)
	for {
		err := s.publishOne(ctx, p, time.Now().After(end))
		if err != errChanging {
			return err
		}
		select {
		case <-time.After(settleStep):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// publishOne sends a volume if it has another content than the machine's. One that is changing is sent only with asIs.
func (s *projections) publishOne(ctx context.Context, p *projection, asIs bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || p.users == 0 {
		return nil
	}
	c, err := readProjected(p.volume, p.ids, maxContent)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it goes, with its pod
	}
	if err != nil {
		return err
	}
	now := &agent.Projection{Name: p.name, Files: c.files}
	if proto.Equal(now, p.last) {
		return nil
	}
	if c.changing && !asIs {
		return errChanging
	}
	s.pod.mu.Lock()
	machine := s.pod.sandbox
	s.pod.mu.Unlock()
	if machine == nil {
		return nil // its first container will carry it
	}
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	err = machine.Publish(ctx, now)
	switch {
	case err == nil:
		p.last = now
	case status.Code(err) == codes.NotFound, errors.Is(err, sandbox.ErrEnded):
		// No container has it now. One that comes carries it.
		return nil
	}
	return err
}
