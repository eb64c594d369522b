// Command manis-agent is process 1 of a sandbox's virtual machine, and under
// another name the init of a container in it.
package main

import (
	"os"

	"manis/guest/agent"
)

// version is set by the linker.
var version = "dev"

func main() {
	if os.Args[0] == agent.ReaperName {
		agent.Reap()
	}
	if err := agent.Run(version); err != nil {
		os.Stderr.WriteString("manis-agent: " + err.Error() + "\n")
		os.Exit(1)
	}
}
