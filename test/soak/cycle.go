package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"syscall"
	"time"
)

// cycle is the life of one container: started in some way, used, ended in some way, removed.
type cycle struct {
	name string
	live func(ctx context.Context, in *installation, container string) error
}

// cycles take turns.
var cycles = []cycle{
	{"run and end", runAndEnd()},
	{"start, exec, stop, remove", startExecStop},
	{"run and end, from the template", runAndEnd("--boot", "template")},
	{"kill the container", killed(func(ctx context.Context, in *installation, container string) error {
		_, err := in.manis(ctx, "kill", container)
		return err
	})},
	{"run and end, with a volume", runAndEnd("-v", "/volume")},
	{"kill the machine", killed(killProcess("{{.State.Pid}}"))},
	{"fail to start", failToStart},
	{"kill the monitor", killed(killProcess("{{.Manis.MonitorPid}}"))},
	{"kill the front end", killFrontEnd},
}

func runAndEnd(flags ...string) func(context.Context, *installation, string) error {
	return func(ctx context.Context, in *installation, container string) error {
		out, err := in.manis(ctx, append(append([]string{"run", "--rm", "--name", container}, flags...), imageName, "echo", container)...)
		if err == nil && out != container {
			err = fmt.Errorf("it said %q", out)
		}
		return err
	}
}

func startExecStop(ctx context.Context, in *installation, container string) error {
	if _, err := in.manis(ctx, "run", "-d", "--name", container, "-p", "127.0.0.1::80", imageName, "sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"); err != nil {
		return err
	}
	out, err := in.manis(ctx, "exec", container, "echo", container)
	if err == nil && out != container {
		err = fmt.Errorf("exec said %q", out)
	}
	_, e := in.manis(ctx, "stop", container)
	err = errors.Join(err, e)
	_, e = in.manis(ctx, "rm", "-v", container)
	return errors.Join(err, e)
}

func failToStart(ctx context.Context, in *installation, container string) error {
	const notFound = 127
	_, err := in.manis(ctx, "run", "--rm", "--name", container, imageName, "/nonexistent")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != notFound {
		return fmt.Errorf("a program that is not there: %v", err)
	}
	return nil
}

// killed is a container that ends by force and is removed.
func killed(kill func(context.Context, *installation, string) error) func(context.Context, *installation, string) error {
	return func(ctx context.Context, in *installation, container string) error {
		if _, err := in.manis(ctx, "run", "-d", "--name", container, imageName, "sleep", "1000"); err != nil {
			return err
		}
		err := kill(ctx, in, container)
		_, e := in.manis(ctx, "rm", "-f", "-v", container)
		return errors.Join(err, e)
	}
}

// killProcess kills the process that a template of inspect names.
func killProcess(template string) func(context.Context, *installation, string) error {
	return func(ctx context.Context, in *installation, container string) error {
		out, err := in.manis(ctx, "inspect", "--format", template, container)
		if err != nil {
			return err
		}
		var pid int
		if _, err := fmt.Sscan(out, &pid); err != nil || pid <= 1 {
			return fmt.Errorf("process of %s: %q", container, out)
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}
}

// killFrontEnd kills it at any moment of a start. The container goes on or is not there.
func killFrontEnd(ctx context.Context, in *installation, container string) error {
	const longest = 1500 // ms: of a start
	cmd := in.command(ctx, "run", "--rm", "--name", container, imageName, "sleep", "1000")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return err
	}
	time.Sleep(time.Duration(rand.IntN(longest)) * time.Millisecond) // the moment is what is tried
	cmd.Process.Kill()
	cmd.Wait()
	names, err := in.manis(ctx, "ps", "-aq", "--filter", "name="+container)
	if err != nil || names == "" {
		return err
	}
	_, err = in.manis(ctx, "rm", "-f", "-v", container)
	return err
}
