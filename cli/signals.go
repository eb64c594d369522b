package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// ending are the signals by which a user or the system ends a command.
var ending = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT}

// proxied are the signals that go to the container's process while it runs.
var proxied = append([]os.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGCONT}, ending...)

// interrupted is why a context ended that a signal cancelled.
type interrupted struct{ sig unix.Signal }

func (i *interrupted) Error() string { return fmt.Sprintf("interrupted (%s)", unix.SignalName(i.sig)) }

// signals decides what a signal means: at first the end of the command,
// later something for the container's process.
type signals struct {
	ch      chan os.Signal
	done    chan struct{}
	mu      sync.Mutex
	forward func(unix.Signal)
}

// catch returns a context that ends with the first ending signal, for as long as
// signals are not forwarded.
func catch(ctx context.Context) (*signals, context.Context) {
	s := &signals{ch: make(chan os.Signal, 16), done: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(ctx)
	signal.Notify(s.ch, proxied...)
	go func() {
		defer close(s.done)
		defer cancel(nil)
		for sig := range s.ch {
			n, ok := sig.(unix.Signal)
			if !ok {
				continue
			}
			s.mu.Lock()
			forward := s.forward
			s.mu.Unlock()
			switch {
			case forward != nil:
				forward(n)
			case isEnding(n):
				cancel(&interrupted{n})
			}
		}
	}()
	return s, ctx
}

func isEnding(sig unix.Signal) bool {
	for _, e := range ending {
		if e == sig {
			return true
		}
	}
	return false
}

// to makes signals go to forward from now on; nil makes them end the command
// again.
func (s *signals) to(forward func(unix.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forward = forward
}

// stop gives signals their normal meaning back.
func (s *signals) stop() {
	signal.Stop(s.ch)
	close(s.ch)
	<-s.done
}
