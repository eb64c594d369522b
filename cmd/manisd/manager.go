package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"manis/pool"
)

// manager is systemd, or whoever else started this process by its protocol: it may have handed over
// sockets, and is told how things are. Without one nothing is said.
type manager struct {
	given    []*os.File
	watchdog time.Duration

	mu      sync.Mutex
	greeted bool
	said    string
	fed     time.Time
}

// takeManager takes what the environment says of sockets and watchdog out of it: machines outlive
// this process and have no business with its manager.
func takeManager() *manager {
	m := &manager{given: activation.Files(true)}
	m.watchdog, _ = daemon.SdWatchdogEnabled(true)
	return m
}

// environ is the environment of machines.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "NOTIFY_SOCKET=") })
}

// listeners are the sockets that this process was given.
func (m *manager) listeners() ([]net.Listener, error) {
	var all []net.Listener
	for _, f := range m.given {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("use the socket %s that the service manager has handed over: %w", f.Name(), err)
		}
		if l, ok := l.(*net.UnixListener); ok {
			l.SetUnlinkOnClose(false) // the manager's
		}
		all = append(all, l)
	}
	return all, nil
}

// notify tells the manager something. Nobody can help when it does not listen.
func (m *manager) notify(state string) { daemon.SdNotify(false, state) }

// alive is called by the pool while it does its work: the first time means that it is ready.
func (m *manager) alive(s pool.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	if !m.greeted {
		m.greeted = true
		lines = append(lines, "READY=1")
	}
	if m.watchdog > 0 && time.Since(m.fed) >= m.watchdog/3 {
		m.fed = time.Now()
		lines = append(lines, "WATCHDOG=1")
	}
	if words := status(s); words != m.said {
		m.said = words
		lines = append(lines, "STATUS="+words)
	}
	if len(lines) > 0 {
		m.notify(strings.Join(lines, "\n"))
	}
}

// status says in words how a pool is.
func status(s pool.State) string {
	waiting, granted := 0, 0
	for _, size := range s.Sizes {
		waiting, granted = waiting+size.Waiting, granted+size.Granted
	}
	words := fmt.Sprintf("%d of %d machines wait", waiting, granted)
	if s.Paused != "" {
		words += "; no more are made: " + s.Paused
	}
	return words
}

func (m *manager) reloading() {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	m.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

func (m *manager) ready()    { m.notify("READY=1") }
func (m *manager) stopping() { m.notify("STOPPING=1") }
