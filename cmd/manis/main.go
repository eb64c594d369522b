// Command manis runs containers, each in a virtual machine of its own.
package main

import (
	"context"
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"manis/cli"
	"manis/guest/exercise"
	"manis/oci"
	"manis/pod"
)

func main() {
	// In the container of a rehearsal, see package monitor: there is nothing else there.
	if len(os.Args) > 1 && os.Args[1] == "exercise" {
		os.Exit(exercise.Run(os.Args[2:]))
	}
	keepFromChildren()
	os.Exit(run(os.Args[1:]))
}

// keepFromChildren has the descriptors that were inherited end with this process. What it starts may live long: a pod's
// process would hold the ports that Podman reserves by sockets in conmon, or a lock of the shell's.
func keepFromChildren() {
	if unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	entries, _ := os.ReadDir("/proc/self/fd") // Linux before 5.11
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

func run(args []string) int {
	ctx := context.Background()
	switch {
	case os.Getenv(pod.ProxyVariable) != "":
		return pod.ProxyMain()
	case len(args) == 2 && args[0] == pod.Word:
		return pod.Main(ctx, args[1])
	case oci.Wants(args):
		return oci.Main(ctx, oci.Args(args))
	}
	return cli.Main(args)
}
