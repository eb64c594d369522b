// Command manis runs containers, each in a virtual machine of its own.
package main

import (
	"os"

	"manis/cli"
	"manis/guest/exercise"
)

func main() {
	// In the container of a rehearsal, see package monitor: there is nothing else there.
	if len(os.Args) > 1 && os.Args[1] == "exercise" {
		os.Exit(exercise.Run(os.Args[2:]))
	}
	os.Exit(cli.Main(os.Args[1:]))
}
