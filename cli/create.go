package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"manis/cli/declare"
	"manis/cli/terminal"
	"manis/container"
	"manis/image"
	"manis/monitor"
	"manis/trace"
)

// cleanupTime bounds the tidying up after a failure or a Ctrl-C.
const cleanupTime = 20 * time.Second

func (a *app) createCommand() *cobra.Command {
	f := new(declare.Flags)
	cmd := &cobra.Command{
		Use:               "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short:             "Create a new container",
		Args:              needs(1, -1),
		ValidArgsFunction: a.firstImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			c, _, err := a.create(ctx, f, args)
			if err != nil {
				return asInterrupted(ctx, fail(exitError, err))
			}
			fmt.Fprintln(a.out, c.ID)
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.Register(cmd.Flags())
	a.completeDeclaration(cmd)
	return cmd
}

// asInterrupted gives the exit code of a signal to what failed because of one.
func asInterrupted(ctx context.Context, err error) error {
	var by *interrupted
	if err != nil && errors.As(context.Cause(ctx), &by) {
		return &status{exitSignal + int(by.sig), nil}
	}
	return err
}

// create makes a container of flags, image and command: everything of `run` before
// anything runs. When it fails nothing is left of it. Flags that mean nothing give the exit
// code 125, as docker's do before it asks its daemon; any other failure is the caller's to
// grade.
func (a *app) create(ctx context.Context, f *declare.Flags, args []string) (_ *container.Container, _ *container.Config, err error) {
	host := declare.ThisHost()
	host.VolumesFrom = a.volumesFrom
	if err := f.Check(host); err != nil {
		return nil, nil, fail(exitFailed, err)
	}
	if f.Confidential() {
		a.note("class confidential, hardware: none: the manifest is enforced and every change shows, but whoever is root on this host can read the machine's memory")
	}
	for _, note := range f.Unheeded() {
		a.note("%s", note)
	}
	if err := cidFile(f.CIDFile).free(); err != nil {
		return nil, nil, err
	}
	if f.Name != "" {
		// Said before a pull; what happens meanwhile is found by Create.
		if err := a.nameFree(f.Name); err != nil {
			return nil, nil, err
		}
	}

	images, err := a.images()
	if err != nil {
		return nil, nil, err
	}
	if err := a.permitReference(images, args[0]); err != nil {
		return nil, nil, fail(exitFailed, err)
	}
	resolveCtx, span := trace.Start(ctx, "resolve")
	img, err := a.findImage(resolveCtx, images, args[0], f)
	span.End()
	if err == nil {
		err = runnable(args[0], img.Platform)
	}
	if err != nil {
		return nil, nil, err
	}
	rootCtx, span := trace.Start(ctx, "image")
	progress := a.progress(a.err, f.Quiet)
	_, release, err := images.Rootfs(rootCtx, img, progress.event)
	progress.close()
	span.End()
	if err != nil {
		return nil, nil, err
	}
	defer release()

	_, span = trace.Start(ctx, "create")
	defer span.End()
	imageConfig, err := declare.ParseImageConfig(img.RawConfig)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := f.Config(&declare.Image{
		Reference: args[0], ID: img.ID, Platform: img.Platform.String(), Config: imageConfig,
	}, args[1:], host)
	if err != nil {
		return nil, nil, err
	}
	if err := a.permit(ctx, cfg, f.Insecure); err != nil {
		return nil, nil, fail(exitFailed, err)
	}
	c, err := a.store(ctx, cfg, images)
	if err != nil {
		return nil, nil, err
	}
	if err := cidFile(f.CIDFile).write(c); err != nil {
		a.discard(c)
		return nil, nil, err
	}
	return c, cfg, nil
}

// store writes the container and makes its claims on image and volumes.
func (a *app) store(ctx context.Context, cfg *container.Config, images *image.Store) (*container.Container, error) {
	store, err := a.containers()
	if err != nil {
		return nil, err
	}
	invent := cfg.Name == ""
	var c *container.Container
	for attempt := 0; ; attempt++ {
		if invent {
			cfg.Name = declare.RandomName(attempt)
		}
		c, err = store.Create(cfg)
		if err == nil {
			break
		}
		if !invent || !errors.Is(err, container.ErrNameInUse) || attempt >= 20 {
			return nil, err
		}
	}
	if err := a.claim(ctx, cfg, images); err != nil {
		a.discard(c)
		return nil, err
	}
	return c, nil
}

// claim keeps image and volumes from being removed while the container is there.
func (a *app) claim(ctx context.Context, cfg *container.Config, images *image.Store) error {
	if err := images.AddUser(cfg.ImageID, cfg.ID); err != nil {
		return err
	}
	return a.claimVolumes(ctx, cfg)
}

// discard removes a container that was just made, whatever happens around it.
func (a *app) discard(c *container.Container) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if err := a.remove(ctx, c, removal{force: true, volumes: true}); err != nil && !errors.Is(err, container.ErrNotFound) {
		a.note("%s", text(err))
	}
}

// nameFree says early that a name is taken.
func (a *app) nameFree(name string) error {
	store, err := a.containers()
	if err != nil {
		return err
	}
	all, err := store.List()
	if err != nil {
		return err
	}
	for _, c := range all {
		if cfg, err := c.Config(); err == nil && cfg.Name == name {
			return fmt.Errorf("conflict: the container name %q is already in use by container %s (remove or rename it to reuse the name)", name, c.ID[:12])
		}
	}
	return nil
}

func (a *app) volumesFrom(name string) ([]container.Mount, error) {
	c, err := a.container(name)
	if err != nil {
		return nil, err
	}
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	return cfg.Mounts, nil
}

// findImage finds the image here or pulls it, as --pull says.
func (a *app) findImage(ctx context.Context, images *image.Store, ref string, f *declare.Flags) (*image.Image, error) {
	platform := image.HostPlatform()
	if f.Platform != "" {
		var err error
		if platform, err = image.ParsePlatform(f.Platform); err != nil {
			return nil, err
		}
		if err := runnable(ref, platform); err != nil {
			return nil, err
		}
	}
	if f.Pull != "always" {
		img, err := images.Resolve(ref)
		switch {
		case err == nil && (f.Platform == "" || samePlatform(img, f.Platform)):
			return img, nil
		case err == nil && f.Pull == "never":
			return nil, fmt.Errorf("image %s is here for %s, not for %s (and --pull=never was given)", ref, img.Platform.String(), f.Platform)
		case err != nil && !errors.Is(err, image.ErrNotFound):
			return nil, err
		case err != nil && f.Pull == "never":
			return nil, fmt.Errorf("no such image: %s (and --pull=never was given)", ref)
		}
		if !f.Quiet {
			fmt.Fprintf(a.err, "Unable to find image '%s' locally\n", tagged(ref))
		}
	}
	return a.pull(ctx, images, ref, platform, pulling{quiet: f.Quiet, insecure: f.Insecure, out: a.err})
}

// busyTime is how long a command waits for one that has taken a container before it.
const busyTime = time.Minute

// spawn starts the container's monitor. A copy that has the container is waited for.
func (a *app) spawn(ctx context.Context, c *container.Container) (*monitor.Client, error) {
	waiting, cancel := context.WithTimeoutCause(ctx, busyTime, errCopied(c))
	defer cancel()
	for {
		client, err := a.launch(ctx, c, false)
		if !errors.Is(err, container.ErrBusy) {
			return client, err
		}
		if err := c.AwaitRelease(waiting); err != nil {
			return nil, err
		}
	}
}

// errCopied says who has the container.
func errCopied(c *container.Container) error {
	return fmt.Errorf("%w: files are being copied to or from %s", container.ErrBusy, c.ID[:12])
}

// launch starts the monitor of a container that nobody has, to run or for a copy.
func (a *app) launch(ctx context.Context, c *container.Container, forCopy bool) (*monitor.Client, error) {
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	// Also for a container that was allowed when it was made: what it mounts may lead elsewhere now, and the
	// policy may be another.
	if err := a.permit(ctx, cfg, false); err != nil {
		return nil, fail(exitFailed, err)
	}
	if forCopy && cfg.Class == container.Confidential {
		return nil, errors.New("a container of the class confidential does not let its host copy files")
	}
	driver := monitor.Driver(places)
	vm, err := a.chooseMachine(ctx, places, driver, cfg)
	if err != nil {
		return nil, err
	}
	if terminal.Is(a.err) && (forCopy || !goesOn(c, cfg)) {
		a.announceTemplate(places, cfg, driver, vm)
	}
	_, span := trace.Start(ctx, "spawn")
	defer span.End()
	opt := monitor.SpawnOptions{Environ: places.Environ(), Copy: forCopy}
	if !forCopy {
		opt.Pool = monitor.Waiting(places, cfg, driver, vm)
		opt.Missed = func() { monitor.Missed(places, cfg) }
	}
	return monitor.Spawn(ctx, c, opt)
}

// goesOn reports whether the container's next start goes on from its snapshot and needs no template: only
// the first one does.
func goesOn(c *container.Container, cfg *container.Config) bool {
	if cfg.Snapshot == "" {
		return false
	}
	st, err := c.State()
	return err != nil || !st.Continued
}
