// Command manis-agent-confidential is process 1 of a machine of the class confidential.
package main

import (
	"os"
	"runtime"

	"manis/guest/agent"
	"manis/guest/confidential"
)

// version is set by the linker.
var version = "dev"

func init() {
	// The first thread is what /proc/self means. It must never run a goroutine that
	// changes its thread's namespaces.
	runtime.LockOSThread()
}

func main() {
	if err := agent.RunGuarded(version, confidential.New()); err != nil {
		os.Stderr.WriteString("manis-agent: " + err.Error() + "\n")
		os.Exit(1)
	}
}
