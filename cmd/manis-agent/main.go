// Command manis-agent is process 1 of a sandbox's virtual machine.
package main

import (
	"os"
	"runtime"

	"manis/guest/agent"
)

// version is set by the linker.
var version = "dev"

func init() {
	// The first thread is what /proc/self means. It must never run a goroutine that
	// changes its thread's namespaces.
	runtime.LockOSThread()
}

func main() {
	if err := agent.Run(version); err != nil {
		os.Stderr.WriteString("manis-agent: " + err.Error() + "\n")
		os.Exit(1)
	}
}
