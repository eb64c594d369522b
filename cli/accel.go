package cli

import (
	"context"

	"manis/cli/terminal"
	"manis/container"
	"manis/monitor"
	"manis/place"
	"manis/trace"
	"manis/vmm"
	"manis/vmm/qemu"
)

// chooseMachine finds out, before the machine is started, which it is and what will execute its
// code. That takes a moment on a host where KVM was not tried before. Who waits for
// it, asked for "auto", or sits at a terminal, is told when there is no KVM; the
// output of scripts stays the container's own.
func (a *app) chooseMachine(ctx context.Context, places *place.Places, driver *qemu.Driver, cfg *container.Config) (vmm.Config, error) {
	ctx, span := trace.Start(ctx, "accelerator")
	defer span.End()
	vm, choice, err := monitor.Choose(ctx, places, driver, cfg)
	if err != nil {
		return vm, err
	}
	if choice.Notice != "" && (choice.New || a.accelAsked || terminal.Is(a.err)) {
		a.note("%s", choice.Notice)
	}
	return vm, nil
}
