package pod

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"manis/api/agent"
	"manis/bundle"
	"manis/network/resolver"
)

// resolvConf is where a container is told its name servers.
const resolvConf = "/etc/resolv.conf"

// servers are the name servers on the loopback of the pod's network namespace that the machine can ask.
type servers struct {
	ns *os.File

	mu    sync.Mutex
	known map[netip.Addr]bool
	// served counts those that are asked.
	served sync.WaitGroup
}

func newServers(netns string) (*servers, error) {
	ns, err := os.Open(netns)
	if err != nil {
		return nil, fmt.Errorf("open the container's network namespace: %w", err)
	}
	return &servers{ns: ns, known: make(map[netip.Addr]bool)}, nil
}

// close waits for the end of what the machine has asked, which ends with it.
func (s *servers) close() {
	s.served.Wait()
	s.ns.Close()
}

// conf is the path on the host of a container's resolv.conf; empty: it has none of the host's.
func conf(plan *bundle.Plan) string {
	for _, b := range plan.Binds {
		for _, m := range plan.Create.Mounts {
			if m.Destination == resolvConf && m.Type == "share" && m.Source == bindsTag+"/"+b.Name {
				return b.HostPath
			}
		}
	}
	return ""
}

// resolve makes the name servers that a resolv.conf names on loopback, and that are there, answer in the machine. It
// may be repeated: engines start theirs when the container is in a network that wants one.
func (p *Pod) resolve(ctx context.Context, conf string) error {
	s := p.servers
	if s == nil || conf == "" {
		return nil
	}
	list, err := resolver.Servers(conf)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, server := range list {
		if s.known[server] || !resolver.Present(s.ns, server) {
			continue
		}
		if err := p.serveNames(ctx, server); err != nil {
			errs = append(errs, fmt.Errorf("name server %s: %w", server, err))
			continue
		}
		s.known[server] = true
	}
	return errors.Join(errs...)
}

// resolveAll does so for all containers.
func (p *Pod) resolveAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	p.mu.Lock()
	var confs []string
	for _, m := range p.members {
		confs = append(confs, m.resolvConf)
	}
	p.mu.Unlock()
	var errs []error
	for _, conf := range confs {
		errs = append(errs, p.resolve(ctx, conf))
	}
	return errors.Join(errs...)
}

// serveNames asks the server for the machine, as long as the machine lives.
func (p *Pod) serveNames(ctx context.Context, server netip.Addr) error {
	stream, token, err := p.sandbox.Stream()
	if err != nil {
		return err
	}
	if _, err := p.sandbox.Agent().Resolve(ctx, &agent.ResolveRequest{Server: server.String(), Stream: token}); err != nil {
		stream.Close()
		return err
	}
	s := p.servers
	s.served.Go(func() {
		if err := resolver.Serve(context.Background(), s.ns, server, stream); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		s.mu.Lock()
		delete(s.known, server)
		s.mu.Unlock()
	})
	return nil
}
