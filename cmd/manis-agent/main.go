// Command manis-agent is process 1 of a sandbox's virtual machine.
package main

import (
	"os"

	"manis/guest/agent"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := agent.Run(version); err != nil {
		os.Stderr.WriteString("manis-agent: " + err.Error() + "\n")
		os.Exit(1)
	}
}
