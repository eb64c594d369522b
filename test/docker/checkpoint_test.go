package docker

import (
	"strings"
	"testing"

	"manis/test/stage"
)

// Docker's checkpoints, which it calls experimental: each is kept by the engine, with a name.
func TestCheckpoint(t *testing.T) {
	d := docker(t)
	c := d.OK(t, "run", "-d", "--network", "none", "box", "sh", "-c", "exec 3>>/log; i=0; while :; do i=$((i+1)); until [ -e /go$i ]; do sleep 0.05; done; echo step $i >&3; echo step $i; done")
	t.Cleanup(func() { d.OK(t, "rm", "-f", c) })
	step := func(n string) {
		t.Helper()
		d.OK(t, "exec", c, "touch", "/go"+n)
		stage.Eventually(t, "step "+n, func() bool { return strings.HasSuffix(d.Run(t, "exec", c, "cat", "/log").Out, "step "+n+"\n") })
	}
	step("1")
	d.OK(t, "checkpoint", "create", "--leave-running", c, "early")
	step("2")
	d.OK(t, "checkpoint", "create", c, "late")
	stage.Eventually(t, "the end", func() bool { return d.OK(t, "inspect", "--format", "{{.State.Status}}", c) == "exited" })
	d.OK(t, "start", "--checkpoint", "late", c)
	step("3")
	d.Prints(t, "step 1\nstep 2\nstep 3", "exec", c, "cat", "/log")
	d.OK(t, "stop", "-t", "0", c)
	d.OK(t, "checkpoint", "rm", c, "early")
}
