package confidential

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"manis/api/agent"
	"manis/audit"
	"manis/trust"
)

const create = "/manis.agent.v1.Agent/CreateContainer"

func request(id, argument string) *agent.CreateContainerRequest {
	return &agent.CreateContainerRequest{
		Id: id, NoDefaultMounts: true, Rootfs: &agent.RootFS{Disk: "root", Verity: &agent.Verity{RootHash: "aa"}},
		Process: &agent.Process{Args: []string{argument}, Cwd: "/"},
	}
}

// guard enforces a manifest of containers that differ by an argument; the first one completes. Of the machine it has the log only.
func guard(t *testing.T, arguments ...string) *Guard {
	t.Helper()
	m := &trust.Manifest{Format: trust.Format, Version: 1, Expires: time.Now().Add(time.Hour), Network: "none", Calls: []string{}}
	for i, a := range arguments {
		c, err := trust.Of(request("x", a), false)
		if err != nil {
			t.Fatal(err)
		}
		c.Completes = i == 0
		m.Containers = append(m.Containers, *c)
	}
	g := New()
	g.manifest, g.log = m, audit.New(ed25519.NewKeyFromSeed(make([]byte, 32)), nil)
	return g
}

// events are the kinds in the log.
func events(t *testing.T, g *Guard) string {
	t.Helper()
	var all strings.Builder
	for _, e := range g.log.From(0, audit.MaxEvents) {
		all.Write(e)
	}
	return all.String()
}

// Containers come in the manifest's order, each once, and after one that completes when it has ended well.
func TestOrder(t *testing.T) {
	g := guard(t, "first", "second", "third")
	ended := func(id string, code uint32) {
		g.After("/manis.agent.v1.Agent/Wait", &agent.WaitRequest{Id: id}, &agent.WaitResponse{ExitCode: code})
	}
	for _, step := range []struct {
		what, id, argument, want string
		before                   func()
	}{
		{what: "the first one left out", id: "b", argument: "second", want: "containers[0].args[0]"},
		{what: "the last one first", id: "c", argument: "third", want: "containers[0].args[0]"},
		{what: "the first one", id: "a", argument: "first"},
		{what: "it again", id: "a", argument: "first", want: "there is a container of this name"},
		{what: "the next one too early", id: "b", argument: "second", want: "containers[0] has not ended with exit code 0"},
		{what: "the next one in time", id: "b", argument: "second", before: func() { ended("a", 0) }},
		{what: "an order changed", id: "d", argument: "fourth", want: "containers[2].args[0]"},
		{what: "one that could not be made", id: "c", argument: "third"},
		{what: "it again", id: "c2", argument: "third", before: func() { g.Failed(create, request("c", "third"), errors.New("EIO")) }},
		{what: "one more", id: "e", argument: "third", want: "containers[3]"},
	} {
		if step.before != nil {
			step.before()
		}
		err := g.Before(create, request(step.id, step.argument))
		if (err == nil) != (step.want == "") || err != nil && !strings.Contains(err.Error(), step.want) {
			t.Errorf("%s: got %v, want %q", step.what, err, step.want)
		}
		if step.want != "" && !strings.Contains(events(t, g), step.want) {
			t.Errorf("%s: the log has no %q", step.what, step.want)
		}
	}
	ended("b", 1)
	if log := events(t, g); strings.Contains(log, `"kind":"`+audit.Closed) || !strings.Contains(log, `"kind":"`+audit.Failed) || !strings.Contains(log, "EIO") {
		t.Errorf("before the end of the last container the log is %s", log)
	}
	ended("c2", 0)
	if log := events(t, g); !strings.Contains(log, `"kind":"`+audit.Closed) {
		t.Errorf("the log has no end: %s", log)
	}
}

// One that fails to complete keeps all that come after it from being made.
func TestCompletion(t *testing.T) {
	g := guard(t, "first", "second")
	if err := g.Before(create, request("a", "first")); err != nil {
		t.Fatal(err)
	}
	g.After("/manis.agent.v1.Agent/Wait", &agent.WaitRequest{Id: "a"}, &agent.WaitResponse{ExitCode: 1})
	if err := g.Before(create, request("b", "second")); err == nil {
		t.Error("the second container was made after the first one had failed")
	}
}

// What the host sets up is names, and a network of one kind.
func TestSetup(t *testing.T) {
	of := func(sysctl string) *agent.Network {
		return &agent.Network{Interfaces: []*agent.Interface{{Name: "eth0", Sysctls: map[string]string{sysctl: "0"}}}}
	}
	for name, c := range map[string]struct {
		request *agent.SetupRequest
		network string
	}{
		"nothing":         {&agent.SetupRequest{Hostname: "h", Network: &agent.Network{}}, "none"},
		"user":            {&agent.SetupRequest{Network: &agent.Network{Device: "eth0"}}, "user"},
		"pod":             {&agent.SetupRequest{Network: of("net/ipv6/conf/eth0/accept_ra")}, "pod"},
		"both":            {&agent.SetupRequest{Network: &agent.Network{Device: "eth0", Interfaces: []*agent.Interface{{Name: "eth0"}}}}, ""},
		"the kernel's":    {&agent.SetupRequest{Network: of("kernel/core_pattern")}, ""},
		"by a detour":     {&agent.SetupRequest{Network: of("net/ipv6/conf/../../../kernel/core_pattern")}, ""},
		"all interfaces'": {&agent.SetupRequest{Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}}, ""},
		"entropy":         {&agent.SetupRequest{Entropy: []byte{1}}, ""},
		"clock":           {&agent.SetupRequest{ClockUnixNs: 1}, ""},
		"shares":          {&agent.SetupRequest{Shares: []*agent.Share{{Tag: "x"}}}, ""},
	} {
		g := New()
		err := g.Before("/manis.agent.v1.Agent/Setup", c.request)
		if (err == nil) != (c.network != "") || g.network != c.network {
			t.Errorf("%s: got %v, and network %q, want %q", name, err, g.network, c.network)
		}
	}
}
