package pod

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"manis/cgroup"
)

// Engines do not ask a runtime whether a container ran out of memory: conmon and containerd's shim for runc read it off the
// control group on the host, where only proxies are. So a further process ends there in the same way, after the container
// and before its proxy: what the engine then counts, and tells as OOMKilled, is true.

// exhausting is the value of ProxyVariable for that process.
const exhausting = "exhaust"

// exhaustTime bounds how long the end of a container waits for it.
const exhaustTime = 5 * time.Second

// exhaustLead is between it and the end of the proxy.
const exhaustLead = 20 * time.Millisecond

// exhaust has the host count an end for want of memory in a control group.
func exhaust(path string) error {
	g, err := cgroup.Find(cgroup.Config{Path: path})
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir, cmd.Env = "/", []string{ProxyVariable + "=" + exhausting}
	word, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	late := time.AfterFunc(exhaustTime, func() { cmd.Process.Kill() })
	defer func() {
		cmd.Process.Kill()
		<-ended
	}()
	// It is in its place before it takes anything.
	if err := g.Join(cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := word.Write([]byte{0}); err != nil {
		return err
	}
	if err := g.Exhaust(ended); err != nil {
		return err
	}
	if !late.Stop() {
		return fmt.Errorf("the kernel let it have what it took for %v", exhaustTime)
	}
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !s.Signaled() {
		return fmt.Errorf("the process that was to end for want of memory had enough (%s)", cmd.ProcessState)
	}
	// Who watches the group was woken first, but is to tell of it first, too.
	time.Sleep(exhaustLead)
	return nil
}

// exhaustMain takes memory, when it is told to, and does not come back where that is limited. What it takes cannot be swapped out as
// far as it may lock it: pods have no CAP_IPC_LOCK (jail.StartKeeper), so that is up to RLIMIT_MEMLOCK, which who has CAP_SYS_RESOURCE can
// raise. The rest could be swapped out, on a host that has more swap for the group than exhaustSteps take: then it ends by itself, and
// exhaust says that it had enough.
func exhaustMain() int {
	unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	score := []byte(strconv.Itoa(1000))
	if err := os.WriteFile("/proc/self/oom_score_adj", score, 0); err != nil {
		return 1
	}
	if n, err := os.Stdin.Read(make([]byte, 1)); n == 0 || err != nil {
		return 1 // the pod is gone
	}
	for range exhaustSteps {
		b, err := unix.Mmap(-1, 0, exhaustStep, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return 1
		}
		unix.Mlock(b) // or not, see above
		for page := 0; page < len(b); page += os.Getpagesize() {
			b[page] = 1
		}
		time.Sleep(time.Millisecond)
	}
	return 0
}

// What it takes at most, step by step.
const exhaustStep, exhaustSteps = 1 << 20, 256
