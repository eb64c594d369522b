package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commandTime bounds one command of a test. A start under emulation takes two or
// three seconds, on a busy machine several times that.
const commandTime = 3 * time.Minute

// world is one installation's data: a root of its own, and how its commands are started.
type world struct {
	t   testing.TB
	dir string // everything is below it
	// root and run are what MANIS_ROOT and MANIS_RUN say, tmp is TMPDIR.
	root, run, tmp string
	env            []string
	binary         string
	user           *account // nil: who runs the tests
	net            *lab     // nil: the host's network
}

// newWorld makes an empty installation. It is checked for leaks at the end of the
// test.
func newWorld(t testing.TB) *world {
	t.Helper()
	needBinary(t)
	// Short: a socket's address holds 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "manis-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, binary: manisBinary}
	w.root, w.run, w.tmp = filepath.Join(dir, "root"), filepath.Join(dir, "run"), filepath.Join(dir, "tmp")
	if err := os.Mkdir(w.tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	w.env = append(cleanEnviron(), "MANIS_ROOT="+w.root, "MANIS_RUN="+w.run, "MANIS_GUEST="+guestDir(),
		"TMPDIR="+w.tmp, "MANIS_CONFIG="+filepath.Join(dir, "config"), "DOCKER_CONFIG="+filepath.Join(dir, "docker"),
		"XDG_CACHE_HOME="+cacheDir(),
		// A process that a test has not asked for would be a leak.
		"MANIS_EXERCISE=off")
	t.Cleanup(w.checkLeaks)
	return w
}

// in is the same world for a subtest.
func (w *world) in(t testing.TB) *world {
	c := *w
	c.t = t
	return &c
}

// cleanEnviron is this process's environment without what would change the product's
// behaviour.
func cleanEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "MANIS_") || strings.HasPrefix(e, "XDG_") || strings.HasPrefix(e, "DOCKER_") ||
			strings.HasPrefix(e, "OTEL_") || strings.HasPrefix(e, "TMPDIR=")
	})
}

// cacheDir is shared by all tests: probes of the host and blank disks are made once.
func cacheDir() string {
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return os.TempDir()
	}
	return filepath.Join(home, ".cache")
}

// setenv sets a variable for all later commands of this world.
func (w *world) setenv(name, value string) {
	w.env = append(slices.Clone(w.env), name+"="+value)
}

// command returns manis with args, ready to start by w.started.
func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.binary, args...)
	cmd.Env = w.env
	cmd.Dir = w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if w.user != nil {
		cmd.SysProcAttr.Credential = w.user.credential()
	}
	return cmd
}

// launch starts a command in this world's network.
func (w *world) launch(cmd *exec.Cmd) error {
	if w.net != nil {
		return w.net.do(cmd.Start)
	}
	return cmd.Start()
}

// manis runs a command to its end.
func (w *world) manis(args ...string) result {
	w.t.Helper()
	return w.begin("", args...).wait()
}

// manisIn runs a command with an input.
func (w *world) manisIn(stdin string, args ...string) result {
	w.t.Helper()
	return w.begin(stdin, args...).wait()
}

// ok runs a command that must succeed and returns its output without the last
// line end.
func (w *world) ok(args ...string) string {
	w.t.Helper()
	r := w.manis(args...)
	if r.code != 0 {
		w.t.Fatalf("manis %s: %s", strings.Join(args, " "), r)
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

// fails runs a command that must fail with a code and with words in its error.
func (w *world) fails(code int, words string, args ...string) {
	w.t.Helper()
	r := w.manis(args...)
	if r.code != code || !strings.Contains(r.stderr, words) {
		w.t.Errorf("manis %s: want exit %d and %q in the error, got %s", strings.Join(args, " "), code, words, r)
	}
}

// up starts a container in the background and returns its id. It is removed at the
// end of the test.
func (w *world) up(args ...string) string {
	w.t.Helper()
	id := w.ok(append([]string{"run", "-d"}, args...)...)
	w.removeAtEnd(id)
	return id
}

// removeAtEnd removes a container at the end of the test, if it is still there.
func (w *world) removeAtEnd(id string) {
	w.t.Cleanup(func() {
		if r := w.manis("rm", "-f", "-v", id); r.code != 0 {
			w.t.Errorf("manis rm -f -v %s: %s", id, r)
		}
	})
}

// sh runs a shell script in a running container, where it must succeed, and returns
// its output without the last line end.
func (w *world) sh(container, script string) string {
	w.t.Helper()
	return w.ok("exec", container, "sh", "-c", script)
}

// field reads one value of inspect.
func (w *world) field(name, template string) string {
	w.t.Helper()
	return w.ok("inspect", "--format", template, name)
}

// status is the word of ps.
func (w *world) status(name string) string {
	w.t.Helper()
	return w.field(name, "{{.State.Status}}")
}

// awaitStatus waits until a container has a status.
func (w *world) awaitStatus(name, want string) {
	w.t.Helper()
	eventually(w.t, name+" to be "+want, func() bool { return w.status(name) == want })
}

// eventually waits for something that other processes bring about.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(commandTime / 2); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}
