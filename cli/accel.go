package cli

import (
	"context"

	"manis/cli/terminal"
	"manis/container"
	"manis/monitor"
	"manis/place"
	"manis/trace"
)

// chooseAccel finds out, before the machine is started, what will execute its
// code. That takes a moment on a host where KVM was not tried before. Who waits for
// it, asked for "auto", or sits at a terminal, is told when there is no KVM; the
// output of scripts stays the container's own.
func (a *app) chooseAccel(ctx context.Context, c *container.Container) error {
	cfg, err := c.Config()
	if err != nil {
		return err
	}
	places, err := a.places()
	if err != nil {
		return err
	}
	guest, err := place.FindGuest()
	if err != nil {
		return err
	}
	ctx, span := trace.Start(ctx, "accelerator")
	defer span.End()
	choice, err := monitor.Accelerators(places, monitor.Driver(places), guest).Choose(ctx, cfg.Accel)
	if err != nil {
		return err
	}
	if choice.Notice != "" && (choice.New || a.accelAsked || terminal.Is(a.err)) {
		a.note("%s", choice.Notice)
	}
	return nil
}
