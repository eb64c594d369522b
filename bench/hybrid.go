package main

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"strconv"
)

// unifiedMount is where hosts with both versions of cgroups keep the second one.
const unifiedMount = "/sys/fs/cgroup/unified"

// withoutUnified holds a mount namespace that lacks the second version's mount, for
// runtimes that refuse a host with both. It returns the words before a command
// that runs it there, and what ends the namespace.
func withoutUnified(ctx context.Context) (prefix []string, release func(), err error) {
	holder := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", "umount "+unifiedMount+" && echo ready && exec cat")
	in, err := holder.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := holder.Start(); err != nil {
		return nil, nil, err
	}
	// cat ends with its input.
	release = func() {
		in.Close()
		holder.Wait()
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		release()
		return nil, nil, fmt.Errorf("unmount %s in a namespace", unifiedMount)
	}
	return []string{"nsenter", "--mount=/proc/" + strconv.Itoa(holder.Process.Pid) + "/ns/mnt"}, release, nil
}
