package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"manis/cgroup"
	"manis/container"
	"manis/host/priority"
	"manis/network"
	"manis/network/netns"
	"manis/place"
	"manis/sandbox"
	"manis/template"
	"manis/vmm"
	"manis/vmm/qemu"
)

// exerciseRounds is how often a machine rehearses before it is saved. Much of what a
// kernel does depends on what it has done before.
const exerciseRounds = 3

// Exercise adds to a template of the machine vm a clone of it that has run containers of no use
// and was saved together with its monitor's process, if it has none that can be continued. What
// has failed before is tried again by those who insist.
func Exercise(ctx context.Context, places *place.Places, driver *qemu.Driver, t *template.Template, vm vmm.Config, insist bool) error {
	if vm.Accel == vmm.AccelKVM {
		return nil // nothing is translated there
	}
	store := Templates(places, driver)
	return store.Save(ctx, t, insist, func(ctx context.Context, pages, resumer *os.File) (*vmm.Saved, error) {
		ctx, cancel := context.WithTimeout(ctx, rehearseTime)
		defer cancel()
		t, err := store.Get(ctx, vm, nil) // another description of its files
		if err != nil {
			return nil, err
		}
		if !insist {
			t.Relinquish()
		}
		// Beside what is written: it is no machine of the pool, which would tidy up after it.
		s, err := cloneStandby(ctx, driver, t, vm, filepath.Join(filepath.Dir(pages.Name()), "run"))
		if err != nil {
			return nil, err
		}
		defer s.release()
		claim := sandbox.Config{Setup: s.setup()}
		if !s.tap {
			stack, err := network.New(ctx, network.Config{})
			if err != nil {
				return nil, err
			}
			defer stack.Close()
			claim.Attach = stack.Serve
		}
		if err := s.sandbox.Claim(ctx, claim); err != nil {
			return nil, err
		}
		if err := s.rehearse(ctx, places, exerciseRounds); err != nil {
			return nil, err
		}
		if err := s.sandbox.Detach(ctx, false); err != nil {
			return nil, fmt.Errorf("end the session with the agent: %w", err)
		}
		return s.sandbox.VM().Save(ctx, pages, resumer)
	})
}

// ExerciseVariable in the environment, when "off", keeps starts from having machines
// exercised in the background.
const ExerciseVariable = "MANIS_EXERCISE"

// ExerciseGroupsVariable in the environment says, in the form of /proc/PID/cgroup, in which control
// groups such a machine belongs. The group of a container would not become empty with its end.
const ExerciseGroupsVariable = "MANIS_EXERCISE_GROUPS"

// exerciseLater has a process of its own, of the lowest priority, exercise a machine for
// containers of this size, with a tap or without, if nobody does. It ends by itself and belongs to
// nobody.
func exerciseLater(places *place.Places, t *template.Template, cfg *container.Config, tap bool) {
	driver := Driver(places)
	if os.Getenv(ExerciseVariable) == "off" || cfg.Accel == "kvm" || !Templates(places, driver).WantsSaving(t) {
		return
	}
	like := container.Config{Accel: cfg.Accel, Resources: cfg.Resources}
	if tap {
		like.Network.Mode = tapMode
	}
	size, err := json.Marshal(like)
	if err != nil {
		return
	}
	cmd := exec.Command("/proc/self/exe", "rehearse", string(size))
	cmd.Args[0] = "manis"
	cmd.Env = append(os.Environ(), places.Environ()...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if cmd.Start() == nil {
		go cmd.Wait()
	}
}

// tapMode is the network of a container whose machine has a tap device, as RehearseMain is told.
const tapMode = "tap"

// rehearseTime bounds the exercise of a machine: on a busy host, where nobody waits for it, it may not
// come to an end, and a guest may hang.
const rehearseTime = 5 * time.Minute

// RehearseMain is the body of `manis rehearse`: it exercises a machine of the size that cfg asks for.
func RehearseMain(ctx context.Context, cfg *container.Config) error {
	ctx, cancel := context.WithTimeout(ctx, rehearseTime)
	defer cancel()
	priority.Give(os.Getpid(), priority.Idle) // and what it starts
	if groups := os.Getenv(ExerciseGroupsVariable); groups != "" {
		if err := cgroup.Return(os.Getpid(), groups); err != nil {
			return fmt.Errorf("leave the container's control group: %w", err)
		}
	}
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	vm, driver, err := Machine(ctx, places, cfg)
	if err != nil {
		return err
	}
	if cfg.Network.Mode == tapMode {
		tap, err := netns.Spare()
		if err != nil {
			return err
		}
		defer tap.Close()
		vm.NIC = &vmm.NIC{Tap: tap}
	}
	vm = TemplateOf(vm)
	store := Templates(places, driver)
	t, err := store.Get(ctx, vm, nil)
	if err != nil {
		return err
	}
	defer t.Close()
	if !store.WantsSaving(t) {
		return nil
	}
	t.Relinquish()
	return Exercise(ctx, places, driver, t, vm, false)
}
