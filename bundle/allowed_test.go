package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"manis/origin"
	"manis/policy"
)

// A plan that is made after the decision has what was allowed, or is refused.
func TestHold(t *testing.T) {
	for name, c := range map[string]struct {
		swap    func(dir string) error
		changed bool
	}{
		"nothing": {func(string) error { return nil }, false},
		"the link is another": {func(dir string) error {
			return errors.Join(os.Remove(dir+"/data/link"), os.Symlink("../secret", dir+"/data/link"))
		}, false},
		"the directory is a link": {func(dir string) error {
			return errors.Join(os.Rename(dir+"/data/given", dir+"/data/old"), os.Symlink("../secret", dir+"/data/given"))
		}, true},
		"the directory is another": {func(dir string) error {
			return errors.Join(os.Rename(dir+"/data/given", dir+"/data/old"), os.Rename(dir+"/secret", dir+"/data/given"))
		}, true},
		"the link is to a file": {func(dir string) error {
			return errors.Join(os.Remove(dir+"/data/link"), os.WriteFile(dir+"/data/link", nil, 0o600))
		}, true},
		"the link is to a device": {func(dir string) error {
			return errors.Join(os.Remove(dir+"/data/link"), os.Symlink("/dev/null", dir+"/data/link"))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"rootfs", "data/given", "secret"} {
				if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink("given", dir+"/data/link"); err != nil {
				t.Fatal(err)
			}
			b, err := Parse(dir, fmt.Appendf(nil, `{"ociVersion":"1.2.0","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"/"},
				"mounts":[{"destination":"/m","type":"bind","source":%q,"options":["bind"]}]}`, dir+"/data/link"))
			if err != nil {
				t.Fatal(err)
			}
			plan, err := b.Plan(Environment{})
			if err != nil {
				t.Fatal(err)
			}
			defer plan.Close()
			p, err := policy.Parse("/policy.yaml", fmt.Appendf(nil, "version: 1\nprofile: standard\nmounts: {allow: [{path: %s/data}]}\n", dir))
			if err != nil {
				t.Fatal(err)
			}
			allowed, err := b.Permit(p, plan, policy.Engine{ID: "c"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.swap(dir); err != nil {
				t.Fatal(err)
			}
			later, err := b.Plan(Environment{})
			if err != nil {
				t.Fatal(err)
			}
			err = later.Hold(allowed)
			if c.changed {
				if !errors.Is(err, origin.ErrChanged) {
					t.Errorf("it is held: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer later.Close()
			if o, err := origin.Of(later.Binds[0].Opened); err != nil || o.Path != dir+"/data/given" {
				t.Errorf("it has %+v, %v", o, err)
			}
		})
	}
}

// What is read-only for the decision is not writable later; without a policy nothing is opened.
func TestHoldIsNoWider(t *testing.T) {
	dir := t.TempDir()
	p := &Plan{Binds: []Bind{{HostPath: dir, ReadOnly: true}}}
	p.Create = plan(t, `{}`, nil).Create
	if err := p.Hold(nil); err != nil || p.Binds[0].Opened != nil {
		t.Errorf("without a policy: %v", err)
	}
	if err := p.Open(); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	allowed, err := p.allowed()
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Plan){
		"writable":       func(p *Plan) { p.Binds[0].ReadOnly = false },
		"writable below": func(p *Plan) { p.Binds[0].WritableBelow = true },
		"a file":         func(p *Plan) { p.Binds[0].File = true },
		"one more":       func(p *Plan) { p.Binds = append(p.Binds, Bind{HostPath: "/etc"}) },
		"none":           func(p *Plan) { p.Binds = nil },
	} {
		later := &Plan{Create: p.Create, Binds: []Bind{{HostPath: dir, ReadOnly: true}}}
		change(later)
		if err := later.Hold(allowed); !errors.Is(err, origin.ErrChanged) {
			t.Errorf("%s: %v", what, err)
			later.Close()
		}
	}
}

// What is decided on cannot be unmounted before it is closed, so that its inode means nothing else; then it can.
func TestOpenHolds(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Skip("only root can mount: ", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	p := &Plan{Binds: []Bind{{HostPath: dir}}}
	if err := p.Open(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, 0); err != unix.EBUSY {
		t.Errorf("unmount: %v", err)
	}
	p.Close()
	if err := unix.Unmount(dir, 0); err != nil && !strings.Contains(err.Error(), "invalid") {
		t.Errorf("after Close: %v", err)
	}
}
