// Command manis runs containers, each in a virtual machine of its own.
package main

import (
	"context"
	"os"

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
	os.Exit(run(os.Args[1:]))
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
