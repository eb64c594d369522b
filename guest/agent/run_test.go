package agent_test

import (
	"testing"
)

func TestRun(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("echo hello; echo oops >&2; exit 7"), nil)
	if r.stdout != "hello\n" || r.stderr != "oops\n" || r.ExitCode != 7 {
		t.Errorf("got %+v", r)
	}
}
