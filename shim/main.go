package shim

import (
	"context"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/pkg/shim"
)

// Name is the runtime's in containerd's configuration, from which the name of the program follows.
const Name = "io.containerd.manis.v2"

// Main is the body of the program, whose arguments are those of containerd's protocol of shims: with the
// action start it starts the process that serves, and with delete it cleans up after one that was killed. With an order of
// start's it serves. It returns the exit code.
func Main(ctx context.Context) int {
	var err error
	switch n := len(os.Args); {
	case os.Args[n-1] == "start":
		err = start(ctx, os.Args[1:n-1])
	case n > 1 && os.Args[1] == serveWord:
		err = serve(ctx, os.Args[2:])
	default:
		// Children are waited for by those who start them.
		containerd.RunShim(ctx, manager{}, func(c *containerd.Config) { c.NoReaper, c.NoSubreaper = true, true })
	}
	if err != nil {
		// containerd quotes it.
		fmt.Fprintf(os.Stderr, "%s: %v", Name, err)
		return 1
	}
	return 0
}
