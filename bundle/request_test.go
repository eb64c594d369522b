package bundle

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/network/egress"
	"manis/policy"
)

// What a bundle asks for is what a policy hears of it.
func TestRequest(t *testing.T) {
	limit, pids := int64(1<<30), int64(7)
	b := &Bundle{Dir: "/bundle", Spec: &specs.Spec{
		Process: &specs.Process{NoNewPrivileges: true, User: specs.User{UID: 5}, Capabilities: &specs.LinuxCapabilities{
			Bounding: []string{"CAP_CHOWN"}, Ambient: []string{"CAP_KILL", "CAP_CHOWN"},
		}},
		Linux: &specs.Linux{
			Seccomp:   new(specs.LinuxSeccomp),
			Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}},
		},
	}}
	p := plan(t, `{"mounts":[{"destination":"/a","type":"bind","source":"/dir","options":["bind","ro"]},
		{"destination":"/b","type":"bind","source":"/mounts","options":["rbind","ro"]}],
		"linux":{"devices":[{"path":"/dev/other","type":"c","major":10,"minor":229},{"path":"/dev/disk","type":"b","major":7,"minor":3},
		{"path":"/dev/fifo","type":"p"},{"path":"/dev/strange","type":"c","major":250,"minor":1}]}}`, hostFiles)
	r := b.Request(p, policy.Engine{ID: "c"})
	if got := r.Process; got.User != policy.NotRoot || got.Escalation || got.Unfiltered || got.Privileged || !slices.Equal(got.Capabilities, []string{"CAP_CHOWN", "CAP_KILL"}) {
		t.Errorf("process %+v", got)
	}
	if !slices.Equal(r.Mounts, []policy.Mount{{Source: "/dir", ReadOnly: true}, {Source: "/mounts", ReadOnly: false}}) {
		t.Errorf("mounts %+v", r.Mounts)
	}
	if !slices.Equal(r.Devices, []string{"/dev/fuse", "/dev/loop3", "/dev/char/250:1"}) {
		t.Errorf("devices %q", r.Devices)
	}
	if r.Sizes.MemoryBytes != 1<<30 || r.Sizes.Pids != 7 || r.Engine.ID != "c" {
		t.Errorf("sizes %+v, engine %+v", r.Sizes, r.Engine)
	}
	p.Disks = []Disk{{Major: 8, Minor: 1, Device: p.Create.Devices[1]}}
	if r := b.Request(p, policy.Engine{}); !slices.Contains(r.Devices, "/dev/block/8:1") || slices.Contains(r.Devices, "/dev/loop3") {
		t.Errorf("with a disk of the host: %q", r.Devices)
	}
	b.Spec.Process, b.Spec.Linux = new(specs.Process), nil
	if r := b.Request(p, policy.Engine{}); r.Process.User != policy.Root || !r.Process.Escalation || !r.Process.Unfiltered || r.Sizes.Pids != -1 || r.Process.Capabilities == nil {
		t.Errorf("without anything: %+v, %+v", r.Process, r.Sizes)
	}
	if r := RequestExec(new(specs.Process)); r.Process.Capabilities != nil || r.Process.User != policy.Root || r.Sizes != nil {
		t.Errorf("a further process: %+v", r.Process)
	}
}

func TestEgressAnnotation(t *testing.T) {
	b := &Bundle{Spec: new(specs.Spec)}
	if l, err := b.Egress(); l != nil || err != nil {
		t.Errorf("without one: %v, %v", l, err)
	}
	b.Spec.Annotations = map[string]string{EgressAnnotation: "any,tcp/443 none.example"}
	l, err := b.Egress()
	if err != nil || l.String() != "any,tcp/443 none.example" {
		t.Errorf("got %v, %v", l, err)
	}
	// Nothing could hold a container with a namespace to it.
	if err := Check(nil, &policy.Request{Network: &policy.Network{Mode: "namespace", Egress: l}}); err == nil || errors.Is(err, policy.ErrRefused) {
		t.Errorf("with a namespace: %v", err)
	}
	if err := Check(nil, &policy.Request{Network: &policy.Network{Mode: "namespace", Egress: egress.Rules(nil)}}); err != nil {
		t.Errorf("with a namespace and no rules: %v", err)
	}
	b.Spec.Annotations[EgressAnnotation] = "somewhere,over/the"
	if l, err := b.Egress(); err == nil || !strings.HasPrefix(err.Error(), "config.json: annotation manis.egress: ") {
		t.Errorf("got %v, %v", l, err)
	}
}
