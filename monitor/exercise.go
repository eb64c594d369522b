package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"manis/container"
	"manis/host/background"
	"manis/network"
	"manis/network/netns"
	"manis/place"
	"manis/pool"
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
		defer s.Release()
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

// exerciseLater has a machine for containers of this size, with a tap or without, exercised in the background, if nobody
// does it already.
func exerciseLater(places *place.Places, t *template.Template, cfg *container.Config, tap bool) {
	driver := Driver(places)
	if os.Getenv(ExerciseVariable) == "off" || cfg.Accel == "kvm" || !Templates(places, driver).WantsSaving(t) {
		return
	}
	like := container.Config{Accel: cfg.Accel, Resources: cfg.Resources}
	if tap {
		like.Network.Mode = pool.TapMode
	}
	size, err := json.Marshal(like)
	if err != nil {
		return
	}
	background.Start(RehearseAction, string(size), places.Environ()...)
}

// RehearseAction is the argument with which the program exercises a machine of the size in a further one.
const RehearseAction = "rehearse"

// rehearseTime bounds the exercise of a machine: on a busy host, where nobody waits for it, it may not
// come to an end, and a guest may hang.
const rehearseTime = 5 * time.Minute

// RehearseMain is the body of `manis rehearse`: it exercises a machine of the size that cfg asks for.
func RehearseMain(ctx context.Context, cfg *container.Config) error {
	ctx, cancel := context.WithTimeout(ctx, rehearseTime)
	defer cancel()
	if err := background.Settle(); err != nil {
		return err
	}
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	vm, driver, err := Machine(ctx, places, cfg)
	if err != nil {
		return err
	}
	if cfg.Network.Mode == pool.TapMode {
		spare, err := netns.NewSpare()
		if err != nil {
			return err
		}
		defer spare.Close()
		vm.NIC = &vmm.NIC{Tap: spare.Tap}
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
