// Command manisd keeps virtual machines waiting, so that containers need not wait for theirs.
// It is optional: without it, or when it dies, containers start from templates.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"manis/container"
	"manis/monitor"
	"manis/place"
	"manis/pool"
	"manis/version"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "manisd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	from := newSource()
	from.flags.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage:  manisd [OPTIONS]\n\nKeep virtual machines waiting for containers\n\n%s", from.flags.FlagUsagesWrapped(120))
	}
	metrics := from.flags.String("metrics", "", "Serve metrics for Prometheus at this loopback `address`, such as 127.0.0.1:9750")
	show := from.flags.Bool("version", false, "Print the version")
	if err := from.flags.Parse(args); err != nil {
		if err == pflag.ErrHelp {
			return nil
		}
		return err
	}
	switch {
	case *show:
		fmt.Println("manisd", version.Version)
		return nil
	case from.flags.NArg() > 0:
		return fmt.Errorf("%q: there are no arguments (see manisd --help)", from.flags.Arg(0))
	}
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	from.path(places)
	host := pool.ThisHost{}
	settings, err := from.settings(host)
	if err != nil {
		return err
	}
	if err := places.Make(); err != nil {
		return err
	}
	manis, err := beside("manis")
	if err != nil {
		return err
	}
	shim, err := beside("containerd-shim-manis-v2")
	if err != nil {
		shim = "" // there is no containerd to serve
	}
	if os.Getenv(place.GuestVariable) == "" {
		// This program and manis must mean the same guest, wherever they lie.
		if guest, err := place.FindGuestOf(manis); err == nil {
			os.Setenv(place.GuestVariable, guest.Dir)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	manager := takeManager()
	listeners, err := manager.listeners()
	if err != nil {
		return err
	}
	if listeners, err = complete(listeners, places.PoolSocket(), *metrics); err != nil {
		return err
	}
	p := &pool.Pool{
		Executable: manis, Shim: shim, Dir: places.Pool(), Environ: append(environ(), places.Environ()...), Host: host,
		Identify: func(ctx context.Context, cfg *container.Config) (pool.Kind, error) {
			return monitor.PoolKind(ctx, places, cfg)
		},
		Log:   func(format string, args ...any) { fmt.Fprintf(os.Stderr, "manisd: "+format+"\n", args...) },
		Alive: manager.alive,
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	for _, l := range listeners {
		all.Go(func() {
			if err := p.Serve(ctx, l); err != nil {
				p.Log("answer at %s: %v", l.Addr(), err)
			}
		})
	}
	// Before the manager hears that this process is ready: until then the signal would end it.
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGHUP)
	defer signal.Stop(asked)
	all.Go(func() { reload(ctx, asked, p, from, manager) })
	p.Run(ctx, settings)
	manager.stopping()
	return nil
}

// complete adds to the listeners that this process was given those that are missing.
func complete(given []net.Listener, socket, metrics string) ([]net.Listener, error) {
	local := false
	for _, l := range given {
		_, unix := l.(*net.UnixListener)
		local = local || unix
	}
	if !local {
		l, err := pool.Listen(socket)
		if err != nil {
			return nil, err
		}
		given = append(given, l)
	}
	if metrics == "" {
		return given, nil
	}
	address, err := net.ResolveTCPAddr("tcp", metrics)
	if err == nil && !address.IP.IsLoopback() {
		err = errors.New("metrics are served to this host only: name a loopback address, such as 127.0.0.1:9750")
	}
	var l net.Listener
	if err == nil {
		l, err = net.ListenTCP("tcp", address)
	}
	if err != nil {
		for _, l := range given {
			l.Close()
		}
		return nil, fmt.Errorf("--metrics %s: %w", metrics, err)
	}
	return append(given, l), nil
}

// reload reads the settings again each time it is asked to. Those that are wrong change nothing.
func reload(ctx context.Context, asked <-chan os.Signal, p *pool.Pool, from *source, manager *manager) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		}
		manager.reloading()
		settings, err := from.settings(p.Host)
		if err == nil {
			err = p.Reload(ctx, settings)
		}
		if err != nil {
			p.Log("the settings stay as they are: %v", strings.TrimSpace(err.Error()))
		}
		manager.ready()
	}
}

// beside finds a program in the directory of this one, or in PATH.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		if path := filepath.Join(filepath.Dir(self), name); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s beside manisd or in PATH: %w", name, err)
	}
	return path, nil
}
