package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxHookOutput bounds what is kept of what a hook says, bytes.
const maxHookOutput = 4 << 10

// runHooks runs hooks one after the other, up to one that fails, with the container's state on
// their standard input (runtime specification, "POSIX-platform Hooks"). inside is the process whose
// namespaces they run in; 0: the runtime's.
func runHooks(ctx context.Context, name string, hooks []specs.Hook, st *specs.State, inside int) error {
	for i := range hooks {
		if err := runHookOf(ctx, name, hooks, i, st, inside); err != nil {
			return err
		}
	}
	return nil
}

func runHookOf(ctx context.Context, name string, hooks []specs.Hook, i int, st *specs.State, inside int) error {
	input, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := runHook(ctx, &hooks[i], input, inside); err != nil {
		return fmt.Errorf("error running %s hook #%d: %s: %w", name, i, hooks[i].Path, err)
	}
	return nil
}

func runHook(ctx context.Context, h *specs.Hook, input []byte, inside int) error {
	if !filepath.IsAbs(h.Path) {
		return errors.New("its path is not absolute")
	}
	if h.Timeout != nil {
		if *h.Timeout <= 0 {
			return fmt.Errorf("its timeout of %d s is not above 0", *h.Timeout)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	said := &tail{limit: maxHookOutput}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stdout, cmd.Stderr = said, said
	// The whole group goes when its time is over, and nobody waits for what a hook has left
	// in the background.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Start
	if inside != 0 {
		err = func() error { return inNamespaces(inside, cmd.Start) }
	}
	if err := err(); err != nil {
		return err
	}
	werr := cmd.Wait()
	switch {
	case werr == nil, errors.Is(werr, exec.ErrWaitDelay):
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("it ran for more than %d s and was killed%s", *h.Timeout, said)
	}
	return fmt.Errorf("%w%s", werr, said)
}

// inNamespaces runs f on a thread in the namespaces of a process.
func inNamespaces(pid int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("leave the shared root: %w", err)
			}
			for _, ns := range []struct {
				name string
				kind int
			}{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"mnt", unix.CLONE_NEWNS}} {
				fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err == nil {
					err = unix.Setns(fd, ns.kind)
					unix.Close(fd)
				}
				if err != nil {
					return fmt.Errorf("join the container's %s namespace: %w", ns.name, err)
				}
			}
			return f()
		}()
	}()
	return <-result
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int
	b     []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	if len(t.b) > t.limit {
		t.b = t.b[len(t.b)-t.limit:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	s := strings.TrimSpace(strings.ToValidUTF8(string(t.b), "?"))
	if s == "" {
		return ""
	}
	return ", output: " + s
}

// writeFile writes a small file so that readers find all of it or nothing.
func writeFile(path string, content []byte, mode os.FileMode) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, content, mode); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
