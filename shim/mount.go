package shim

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// checkPropagation refuses volumes whose containers mount for others: silence would leave those with empty directories.
func checkPropagation(mounts []specs.Mount) error {
	for i, m := range mounts {
		if slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared") {
			return fmt.Errorf("config.json: mounts[%d] (%.80s): mountPropagation: Bidirectional was asked for: what a container mounts in its virtual machine "+
				"cannot appear on the host or in other containers; use None or HostToContainer, or run the pod with another runtime: %w", i, m.Destination, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
