package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"manis/api/monitor"
	"manis/container"
	"manis/image"
	"manis/place"
	"manis/storage"
	"manis/trace"
)

// Monitor is the owner of one container.
type Monitor struct {
	c      *container.Container
	cfg    *container.Config
	places *place.Places
	log    *logFile // nil with the log driver none
	spans  *trace.Recorder

	// standby is the machine for the first round, if there is one.
	standby *Standby

	// start is closed by the first Start request: the first process may run.
	start     chan struct{}
	startOnce sync.Once

	mu    sync.Mutex
	state container.State
	// changed is closed and replaced at every change of the state.
	changed chan struct{}
	// run is the present round, or the next one; never nil.
	run *round
	// started is closed when the first round has started its process or failed;
	// startErr is why it failed.
	started  chan struct{}
	startErr error
	// startTrace are the spans of that first start. They go with the answer: with --rm
	// a short container is gone, and its state with it, before anybody could read them there.
	startTrace []byte
	wantsStop  bool
	restart    container.Restart
	// final is set when no further round follows.
	final bool
	// again makes the next round begin at once: a restart by the user.
	again bool
	// done is closed when nothing is left to do but to say goodbye.
	done chan struct{}

	// checkpointing is held while the container is being saved.
	checkpointing sync.Mutex

	// copying: the container does not run and is not to run; its files are copied.
	copying bool
	// record is that of the last machine of a confidential container; nil: there was none, or the container is of another class.
	record *Record

	// copyErr is why what was copied may not have reached its disk.
	copyErr error
}

// A monitor's second argument says that the container's lock is on descriptor 4, and what
// it was taken for: for a start, or for copies of files while the container does not run.
const (
	forStart = "start"
	forCopy  = "copy"
)

// Main is the body of `manis monitor ID [start|copy]`. A connection to the front end that
// started it is on descriptor 3. It returns the exit status.
func Main(ctx context.Context, args []string) int {
	purpose := ""
	if len(args) > 1 {
		purpose = args[1]
	}
	first, err := fileConn(3)
	if err != nil {
		err = fmt.Errorf("the monitor is started by manis run and start, not by hand: %w", err)
	} else {
		// Who waits at the other end reads the last words when it ends: they are written before.
		defer first.Close()
		err = serve(ctx, args[0], purpose, first)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, id, purpose string, first net.Conn) error {
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	t := task{first: first, copying: purpose == forCopy}
	if purpose != "" {
		unix.CloseOnExec(4)
		t.lock = os.NewFile(4, "lock")
	}
	return own(ctx, places, id, t)
}

// endTime is how long a start waits for the monitor of the run before to end.
const endTime = 10 * time.Second

// task is what a monitor is given besides its container.
type task struct {
	first   net.Conn // to the front end, the caller's
	lock    *os.File // the container's; nil: it has to be taken
	copying bool
	standby *Standby // a machine that waits for a container, or nil
	ready   func()   // if not nil, called when the container is this process's
}

// own is the life of a monitor from the moment that it knows its container.
func own(ctx context.Context, places *place.Places, id string, t task) error {
	first, lock, copying := t.first, t.lock, t.copying
	if err := places.Make(); err != nil {
		return err
	}
	store, err := container.Open(places.Containers(), places.Run)
	if err != nil {
		return err
	}
	c, err := store.Get(id)
	if err != nil {
		return err
	}
	if lock == nil {
		limit := endTime
		if t.standby != nil {
			limit = 0 // who claims a machine does not wait for it, and starts a monitor otherwise
		}
		if lock, err = c.LockAfterEnd(limit); err != nil {
			return err
		}
	}
	defer lock.Close()
	if t.ready != nil {
		t.ready()
	}
	cfg, err := c.Config()
	if err != nil {
		return err
	}
	m := &Monitor{
		c: c, cfg: cfg, places: places, standby: t.standby,
		start:   make(chan struct{}),
		started: make(chan struct{}),
		changed: make(chan struct{}),
		restart: cfg.Restart,
		done:    make(chan struct{}),
		spans:   trace.NewRecorder(),
		run:     newRound(cfg.TTY),
		copying: copying,
	}
	if old, err := c.State(); err == nil {
		m.state = *old
		m.state.RestartCount = 0
	}
	if cfg.Log.Driver != "none" && !copying {
		if m.log, err = openLog(LogDir(c.Dir()), cfg.Log.MaxBytes, cfg.Log.MaxFiles); err != nil {
			return err
		}
		defer m.log.Close()
	}
	os.RemoveAll(c.CopyDir()) // of a copy that was killed
	if err := os.MkdirAll(m.runDir(), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	socket := c.CopySocket()
	if !copying {
		socket = c.Socket()
		defer os.RemoveAll(m.runDir())
	}
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen for front ends: %w", err)
	}

	ctx, cancel := context.WithCancel(trace.With(ctx, m.spans))
	defer cancel()
	fronts := newFronts(ctx, m)
	fronts.serve(first)
	var background sync.WaitGroup
	background.Go(func() { fronts.accept(listener) })
	background.Go(func() { m.obeySignals(ctx) })

	if copying {
		m.lend(ctx)
		// All that is left goes before a front end hears that this is the end: the next
		// one finds the container free. Another copy may begin from here on.
		listener.Close()
		os.RemoveAll(m.runDir())
		lock.Close()
	} else {
		m.live(ctx)
		if m.cfg.AutoRemove {
			m.remove(lock)
		}
	}
	close(m.done)
	listener.Close()
	fronts.drain()
	cancel()
	background.Wait()
	return nil
}

// obeySignals stops the container in order when the monitor is asked to end, as
// at the host's shutdown. Everything else a terminal or a session may send is
// not meant for the monitor.
func (m *Monitor) obeySignals(ctx context.Context) {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	defer signal.Stop(terminate)
	select {
	case <-terminate:
		(&front{Monitor: m}).Stop(ctx, &monitor.StopRequest{TimeoutSeconds: -1})
	case <-ctx.Done():
	}
}

// live runs rounds until the restart policy, or the user, says that it is
// enough.
func (m *Monitor) live(ctx context.Context) {
	wait := time.Duration(0)
	for n := 0; ; n++ {
		begin := time.Now()
		err := m.round(ctx)
		m.mu.Lock()
		if n == 0 && err != nil && m.startErr == nil {
			m.startErr = err
		}
		if n == 0 {
			closeOnce(m.started)
		}
		again := m.again || n > 0 && err != nil && !m.wantsStop && m.wantsRestart()
		if err == nil && !again {
			again = !m.wantsStop && m.wantsRestart()
		}
		byUser := m.again
		m.again = false
		if byUser {
			m.wantsStop = false
		}
		if !again {
			m.final = true
			m.change()
			m.mu.Unlock()
			return
		}
		if byUser {
			wait = 0
		} else {
			m.state.RestartCount++
			// Docker's rule: doubled from 100 ms to a minute, back to the beginning
			// after ten seconds of life.
			if time.Since(begin) > 10*time.Second || wait == 0 {
				wait = 100 * time.Millisecond
			} else {
				wait = min(2*wait, time.Minute)
			}
		}
		m.state.Status = container.Restarting
		m.save()
		m.change()
		changed := m.changed
		m.mu.Unlock()

		timer := time.NewTimer(wait)
		for waiting := true; waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-changed:
				m.mu.Lock()
				changed = m.changed
				waiting = !m.wantsStop && !m.again
				m.mu.Unlock()
			}
		}
		timer.Stop()
		m.mu.Lock()
		if m.wantsStop && !m.again {
			m.final = true
			m.state.Status = container.Exited
			m.state.StoppedByUser = true
			m.save()
			m.change()
			m.mu.Unlock()
			return
		}
		m.again = false
		rows, columns := m.run.size()
		m.run = newRound(m.cfg.TTY)
		m.run.rows, m.run.columns = rows, columns
		m.mu.Unlock()
	}
}

// wantsRestart applies the restart policy to the last exit. m.mu is held.
func (m *Monitor) wantsRestart() bool {
	switch m.restart.Policy {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return m.state.ExitCode != 0 && (m.restart.Max == 0 || m.state.RestartCount < m.restart.Max)
	}
	return false
}

// save writes the state; m.mu is held. A full disk must not stop the container:
// what could not be written is tried again at the next change.
func (m *Monitor) save() {
	if err := m.c.SetState(&m.state); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// change wakes everybody who waits for a state; m.mu is held.
func (m *Monitor) change() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// letStart allows the first process to run.
func (m *Monitor) letStart() { m.startOnce.Do(func() { close(m.start) }) }

// remove deletes the container after its end under --rm.
func (m *Monitor) remove(lock *os.File) {
	err := Remove(m.places, m.c, m.cfg, lock, true)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// Remove deletes a container that does not run and that the caller has locked:
// its directory, its claims on the image and on volumes, and with volumes its
// anonymous volumes too. The directory goes first, which makes room where the disk is
// full; claims of a container that is gone count for nothing.
func Remove(places *place.Places, c *container.Container, cfg *container.Config, lock *os.File, volumes bool) error {
	if err := c.Remove(lock); err != nil {
		return err
	}
	var errs []error
	ctx := context.Background()
	if store, err := storage.OpenVolumes(ctx, places.Volumes()); err == nil {
		for _, mount := range cfg.Mounts {
			if mount.Type != "volume" {
				continue
			}
			if err := store.RemoveUser(ctx, mount.Source, c.ID); err != nil && !errors.Is(err, storage.ErrNoVolume) {
				errs = append(errs, err)
			}
			if volumes && mount.Anonymous {
				if err := store.Remove(ctx, mount.Source); err != nil && !errors.Is(err, storage.ErrNoVolume) && !errors.Is(err, storage.ErrVolumeInUse) {
					errs = append(errs, err)
				}
			}
		}
	} else {
		errs = append(errs, err)
	}
	if store, err := image.Open(places.Images()); err == nil {
		errs = append(errs, store.RemoveUser(cfg.ImageID, c.ID))
	} else {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// exitCode is docker's for a process that could not be started.
func exitCode(err error) int {
	switch status.Code(err) {
	case codes.NotFound:
		return 127
	case codes.PermissionDenied, codes.FailedPrecondition:
		return 126
	}
	return 125
}

func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return b
}

// runDir is where the machine has its sockets.
func (m *Monitor) runDir() string {
	if m.copying {
		return m.c.CopyDir()
	}
	return m.c.RunDir()
}

func (m *Monitor) scratchPath() string { return filepath.Join(m.c.Dir(), "scratch.img") }
