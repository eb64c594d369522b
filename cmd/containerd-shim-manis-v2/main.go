// Command containerd-shim-manis-v2 is the runtime io.containerd.manis.v2 of containerd: it runs the
// containers of a pod in a virtual machine of their own. containerd starts it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"manis/container"
	"manis/guest/exercise"
	"manis/monitor"
	"manis/pod"
	"manis/shim"
)

func main() {
	// As in cmd/manis: machines are exercised by the program that has started them, and in them.
	switch {
	case len(os.Args) > 1 && os.Args[1] == "exercise":
		os.Exit(exercise.Run(os.Args[2:]))
	case len(os.Args) == 3 && os.Args[1] == monitor.RehearseAction:
		var size container.Config
		if json.Unmarshal([]byte(os.Args[2]), &size) != nil || monitor.RehearseMain(context.Background(), &size) != nil {
			os.Exit(1)
		}
		return
	case len(os.Args) == 3 && os.Args[1] == "standby":
		// A machine that waits, and what it becomes.
		err := monitor.StandbyMain(context.Background(), os.Args[2], monitor.PodOwners{Pod: pod.Adopt, Shim: shim.Adopt})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	case len(os.Args) == 3 && os.Args[1] == shim.ImageAction:
		if err := shim.ImageMain(context.Background(), os.Args[2]); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(shim.Main(context.Background()))
}
