package monitor

import (
	"context"
	"fmt"
	"os"

	"manis/network"
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
// and was saved together with its monitor's process, if it has none that can be continued.
func Exercise(ctx context.Context, places *place.Places, driver *qemu.Driver, t *template.Template, vm vmm.Config) error {
	if vm.Accel == vmm.AccelKVM {
		return nil // nothing is translated there
	}
	store := Templates(places, driver)
	return store.Save(ctx, t, func(ctx context.Context, pages, resumer *os.File) (string, error) {
		t, err := store.Get(ctx, vm, nil) // another description of its files
		if err != nil {
			return "", err
		}
		s, err := cloneStandby(ctx, places, driver, t, vm)
		if err != nil {
			return "", err
		}
		defer s.release()
		stack, err := network.New(ctx, network.Config{})
		if err != nil {
			return "", err
		}
		defer stack.Close()
		if err := s.sandbox.Claim(ctx, sandbox.Config{Attach: stack.Serve, Setup: s.setup()}); err != nil {
			return "", err
		}
		if err := s.rehearse(ctx, places, exerciseRounds); err != nil {
			return "", err
		}
		if err := s.sandbox.Detach(ctx); err != nil {
			return "", fmt.Errorf("end the session with the agent: %w", err)
		}
		return s.sandbox.VM().Save(ctx, pages, resumer)
	})
}
