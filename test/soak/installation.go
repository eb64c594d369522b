package soak

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"manis/test/census"
	"manis/test/debimage"
)

// imageName is what the containers are made of.
const imageName = "busybox"

// installation is a Manis with a store of its own.
type installation struct {
	census.Installation
	dir    string
	binary string
	env    []string
	daemon *exec.Cmd // nil without a pool
	size   int       // of the pool
}

// install makes an installation below a new directory, with an image.
func install(ctx context.Context, binary string) (*installation, error) {
	// Short: a socket's address holds 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "manis-soak-")
	if err != nil {
		return nil, err
	}
	tmp := filepath.Join(dir, "tmp")
	in := &installation{dir: dir, binary: binary}
	in.Installation = census.Installation{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Further: []string{tmp}, Names: []string{filepath.Base(dir)}}
	in.env = slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "MANIS_") && !strings.HasPrefix(e, "MANIS_GUEST=") || strings.HasPrefix(e, "OTEL_") || strings.HasPrefix(e, "TMPDIR=")
	})
	in.env = append(in.env, "MANIS_ROOT="+in.Root, "MANIS_RUN="+in.Run, "MANIS_CONFIG="+filepath.Join(dir, "config"), "TMPDIR="+tmp)
	if err := in.fill(ctx); err != nil {
		in.remove()
		return nil, err
	}
	return in, nil
}

// fill brings the image into the store.
func (in *installation) fill(ctx context.Context) error {
	if err := os.Mkdir(in.Further[0], 0o700); err != nil {
		return err
	}
	builder, err := debimage.New(nil)
	if err != nil {
		return err
	}
	recipe, err := debimage.Find(imageName)
	if err != nil {
		return err
	}
	img, err := builder.Build(ctx, recipe)
	if err != nil {
		return err
	}
	layout := filepath.Join(in.dir, "layout")
	if err := debimage.WriteLayout(layout, img, imageName+":latest"); err != nil {
		return err
	}
	_, err = in.manis(ctx, "load", "-q", "-i", layout)
	return err
}

// remove ends and removes everything.
func (in *installation) remove() {
	in.stopDaemon()
	for pid := range in.Processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	os.RemoveAll(in.dir)
}

// commandTime bounds one command; under emulation, on a busy machine, starts take long.
const commandTime = 3 * time.Minute

// command is manis with arguments.
func (in *installation) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, in.binary, args...)
	cmd.Env, cmd.Dir = in.env, in.dir
	return cmd
}

// manis runs a command to its end and returns its output.
func (in *installation) manis(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := in.command(ctx, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("manis %s: %w: %.300s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// startDaemon keeps machines waiting from now on.
func (in *installation) startDaemon(waiting int) error {
	in.size = waiting
	in.daemon = exec.Command(filepath.Join(filepath.Dir(in.binary), "manisd"), "-n", fmt.Sprint(waiting))
	in.daemon.Env, in.daemon.Dir = in.env, in.dir
	said, err := os.Create(in.said())
	if err != nil {
		return err
	}
	defer said.Close()
	in.daemon.Stderr = said
	in.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := in.daemon.Start(); err != nil {
		in.daemon = nil
		return err
	}
	in.Daemon = in.daemon.Process.Pid
	return nil
}

// said is the file of what the daemon has said.
func (in *installation) said() string { return filepath.Join(in.dir, "manisd.log") }

func (in *installation) stopDaemon() {
	if in.daemon == nil {
		return
	}
	in.daemon.Process.Signal(syscall.SIGTERM)
	in.daemon.Wait()
	in.daemon, in.Daemon = nil, 0
}

// full reports whether as many machines wait as are wanted.
func (in *installation) full() bool {
	waiting, _ := filepath.Glob(filepath.Join(in.Run, "pool", "[0-9a-f]*-*"))
	return in.daemon == nil || len(waiting) >= in.size
}
