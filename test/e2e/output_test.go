package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"manis/trace"
)

// Output is made for programs when it goes to one: no colours, no progress that moves, valid
// JSON, one thing a line with -q.
func TestOutputHygiene(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	name := h.push(image(t, "box"), "box:1")
	pull := w.manis("pull", name)
	if pull.code != 0 || strings.ContainsAny(pull.stdout+pull.stderr, "\x1b\r") || !strings.Contains(pull.stdout, "Digest: ") {
		t.Errorf("pull: %q", pull)
	}
	if r := w.manis("pull", "-q", name); r.stdout != name+"\n" || r.stderr != "" {
		t.Errorf("pull -q: %s", r)
	}
	r := w.manis("run", "-d", "--name", "c", "-v", "data:/data", name, "sleep", "1000")
	if len(strings.TrimSpace(r.stdout)) != 64 || strings.ContainsAny(r.stdout+r.stderr, "\x1b\r") {
		t.Errorf("run -d: %q", r)
	}
	w.removeAtEnd("c")
	for _, c := range []struct {
		args  string
		lines bool // one JSON object a line; else one document
	}{
		{"ps --format json", true}, {"ps -a --format {{json\t.}}", true}, {"images --format json", true}, {"volume ls --format json", true},
		{"stats --no-stream --format json", true}, {"system df --format json", true}, {"history --format json " + name, true},
		{"inspect c", false}, {"inspect " + name, false}, {"inspect data", false}, {"inspect --format json c", false},
		{"volume inspect data", false}, {"image inspect " + name, false}, {"container inspect c", false},
		{"version --format json", false}, {"info --format json", false},
	} {
		t.Run(c.args, func(t *testing.T) {
			var args []string
			for _, a := range strings.Fields(strings.ReplaceAll(c.args, "\t", "_")) {
				args = append(args, strings.ReplaceAll(a, "json_.", "json ."))
			}
			out := w.in(t).ok(args...)
			if c.lines {
				for line := range strings.Lines(out) {
					if !json.Valid([]byte(line)) {
						t.Errorf("not JSON: %q", line)
					}
				}
			} else if !json.Valid([]byte(out)) {
				t.Errorf("not JSON: %q", clip(out))
			}
			if out == "" || strings.Contains(out, "\x1b") {
				t.Errorf("%q", clip(out))
			}
		})
	}
	for _, args := range []string{"ps", "images", "volume ls", "history " + name, "system df", "stats --no-stream", "top c", "info", "version", "--help", "run --help"} {
		t.Run(args, func(t *testing.T) {
			if out := w.in(t).ok(strings.Fields(args)...); strings.Contains(out, "\x1b") || strings.HasSuffix(out, "\n") || out == "" {
				t.Errorf("%q", clip(out))
			}
		})
	}
	t.Run("templates that are wrong", func(t *testing.T) {
		w := w.in(t)
		w.fails(1, "template", "ps", "--format", "{{.Names")
		if r := w.manis("inspect", "--format", "{{.NoSuchField}}", "c"); r.code != 1 || r.stderr == "" {
			t.Error(r)
		}
	})
	t.Run("unknown commands", func(t *testing.T) {
		w := w.in(t)
		for _, args := range [][]string{{"rnu"}, {"container", "rnu"}, {"ps", "--no-such"}} {
			if r := w.manis(args...); r.code == 0 || r.stdout != "" || !strings.Contains(r.stderr, "manis: ") {
				t.Errorf("%v: %s", args, r)
			}
		}
	})
}

// doctor says what the host can do, a line each, and what to do where it cannot; --trace shows
// where a start spends its time.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// It tries KVM anew and remembers what came of it, which other tests' containers would be told of.
	w.ownCache()
	r := w.manis("doctor")
	if r.code != 0 {
		t.Errorf("doctor on a host that runs containers: %s", r)
	}
	for _, want := range []string{"KVM", "TCG", "QEMU", "POLICY", "CONFIDENTIAL"} {
		if !strings.Contains(strings.ToUpper(r.stdout), want) {
			t.Errorf("doctor does not speak of %s:\n%s", want, r.stdout)
		}
	}
	if strings.Contains(r.stdout, "\x1b") {
		t.Error("colours where no terminal is")
	}
	wrong := filepath.Join(w.tmp, "policy.yaml")
	if err := os.WriteFile(wrong, []byte("version: 1\nsize: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.setenv("MANIS_POLICY", wrong)
	if r := w.manis("doctor"); r.code != 1 || !strings.Contains(r.stdout, wrong+": line 2") {
		t.Errorf("doctor with a policy that cannot be read: %s", r)
	}
	w.setenv("MANIS_POLICY", "")
	if err := os.Remove(wrong); err != nil {
		t.Fatal(err)
	}
	// Without a QEMU it fails, and says what to install.
	w.setenv("PATH", w.tmp)
	bad := w.manis("doctor")
	t.Logf("without programs: exit %d", bad.code)
	w.setenv("MANIS_GUEST", w.tmp)
	bad = w.manis("doctor")
	if bad.code == 0 || !strings.Contains(bad.stdout+bad.stderr, "make build") {
		t.Errorf("doctor without a guest image: %s", bad)
	}
}

func TestTraceShowsThePhases(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	r := w.manis("run", "--rm", "--trace", "box", "echo", "out")
	if r.code != 0 || r.stdout != "out\n" {
		t.Error(r)
	}
	for _, phase := range []string{"resolve", "spawn", "boot", "agent", "rootfs", "launch", "first byte"} {
		if !strings.Contains(r.stderr, phase) {
			t.Errorf("the trace lacks %q:\n%s", phase, r.stderr)
		}
	}
	// What the monitor has measured is a part of "start", also of a container that was gone
	// before anybody could look at it.
	for range 3 {
		r := w.manis("run", "--rm", "--trace", "box", "true")
		start := strings.Index(r.stderr, "\n  start ")
		for _, phase := range []string{"boot", "rootfs", "launch"} {
			if at := strings.Index(r.stderr, "\n    "+phase+" "); start < 0 || at < start {
				t.Errorf("the trace lacks %q below \"start\":\n%s", phase, r.stderr)
			}
		}
	}
	if !strings.Contains(r.stderr, " ms") || strings.Contains(r.stderr, "\x1b") {
		t.Errorf("the trace:\n%s", r.stderr)
	}
	// To programs it is one line.
	r = w.manis("run", "--rm", "--accel", "tcg", "--trace=json", "box", "true")
	var spans []trace.Span
	if err := json.Unmarshal([]byte(r.stderr), &spans); err != nil || len(spans) < 10 || spans[0].Name != "run" || !spans[0].End.After(spans[0].Start) {
		t.Errorf("%v: %s", err, r.stderr)
	}
	w.fails(125, "waterfall and json", "run", "--rm", "--trace=picture", "box", "true")
}
