package podman

import (
	"strings"
	"testing"

	"manis/test/stage"
)

// TestOperator is what manis ps and exec of who looks after the host say of Podman's containers.
func TestOperator(t *testing.T) {
	p := podman(t)
	t.Parallel()
	m := &stage.Engine{Args: []string{stage.Manis(t)}, Env: stage.Environ(stage.Home()), Dir: stage.Dir()}
	id := strings.TrimSpace(p.OK(t, "run", "-d", "--network", "none", "box", "sh", "-c", "echo words; exec sleep 1000"))
	t.Cleanup(func() { p.OK(t, "rm", "-f", "-t", "0", id) })
	row := func(flags ...string) string {
		t.Helper()
		return strings.TrimSpace(m.OK(t, append([]string{"ps", "--engines", "--no-trunc", "--filter", "id=" + id, "--format", "{{.Engine}} {{.Pod}} {{.State}}"}, flags...)...))
	}
	if got, want := row(), "podman "+id+" running"; got != want {
		t.Errorf("ps --engines: %q, want %q", got, want)
	}
	if r := m.Feed(t, "typed\n", "exec", "-i", id[:12], "sh", "-c", "cat; echo other >&2; exit 6"); r.Code != 6 || r.Out != "typed\n" || r.Err != "other\n" {
		t.Errorf("exec: %s", r)
	}
	if out := m.OK(t, "top", id[:12]); !strings.Contains(out, "sleep 1000") {
		t.Errorf("top: %s", out)
	}
	m.Fails(t, 1, "podman logs "+id, "logs", id[:12])
	if out := p.OK(t, "exec", id, "echo", "still"); strings.TrimSpace(out) != "still" {
		t.Errorf("podman exec: %s", out)
	}
	p.OK(t, "stop", "-t", "0", id)
	if got := row(); got != "" {
		t.Errorf("after its end: %q", got)
	}
}
