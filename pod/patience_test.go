package pod

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPatienceOver(t *testing.T) {
	w := patience{limit: 5 * time.Second, most: time.Minute}
	for _, c := range []struct {
		passed, waited time.Duration
		over           bool
	}{
		{4 * time.Second, 0, false}, {5 * time.Second, 0, true}, {5 * time.Second, time.Second, false},
		{50 * time.Second, 46 * time.Second, false}, {50 * time.Second, 45 * time.Second, true},
		// Several threads wait for more than there was, and a thread that ends takes what it has waited with it.
		{50 * time.Second, time.Hour, false}, {time.Minute, time.Hour, true}, {5 * time.Second, -time.Hour, true},
	} {
		if got := w.over(c.passed, c.waited); got != c.over {
			t.Errorf("after %v with %v of waiting: %v", c.passed, c.waited, got)
		}
	}
}

// That a process gets no processor is seen; one that could run and does nothing loses one's patience, and in the end each does.
func TestPatienceWithAProcess(t *testing.T) {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	for cpu := range 8 * len(allowed) * 8 {
		if allowed.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	spin := func(nice int) int {
		t.Helper()
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		if err := unix.SchedSetaffinity(cmd.Process.Pid, &one); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, nice); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid
	}
	// The kernel counts a wait when it is over: it must not last too long.
	slow := spin(5)
	for range 8 {
		spin(0)
	}
	before := starved(slow)
	for deadline := time.Now().Add(time.Minute); starved(slow)-before < time.Second; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Skip("this kernel does not tell how long a process waits for a processor")
		}
	}
	hung := exec.Command("sleep", "1000")
	if err := hung.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		hung.Process.Kill()
		hung.Wait()
	}()
	lost, cancel := patience{limit: time.Second, most: time.Hour}.with(t.Context(), hung.Process.Pid)
	defer cancel()
	<-lost.Done()
	last, cancelLast := patience{limit: time.Hour, most: time.Second}.with(t.Context(), slow)
	defer cancelLast()
	<-last.Done()
	if t.Context().Err() != nil || context.Cause(last) != context.Canceled {
		t.Error("it ended otherwise: ", context.Cause(last))
	}
}
