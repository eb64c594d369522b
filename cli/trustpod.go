package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"manis/cli/declare"
	"manis/container/workload"
	"manis/image"
	"manis/monitor"
	"manis/trust"
)

// podManifest makes the manifest of a pod. The images are those of the store, and pulled if they are not there.
func (a *app) podManifest(ctx context.Context, o *manifestFlags) error {
	text, err := os.ReadFile(o.pod)
	if err != nil {
		return fmt.Errorf("read the pod: %w", err)
	}
	images, err := a.images()
	if err != nil {
		return err
	}
	found := make(map[string]*image.Image)
	p, err := workload.ReadPod(text, func(reference string) (*workload.Image, error) {
		if reference == "" {
			return nil, errors.New("image: is missing")
		}
		img, err := a.findImage(ctx, images, reference, &declare.Flags{})
		if err != nil {
			return nil, err
		}
		cfg, err := declare.ParseImageConfig(img.RawConfig)
		if err != nil {
			return nil, err
		}
		found[reference] = img
		return &workload.Image{
			Entrypoint: cfg.Entrypoint, Cmd: cfg.Cmd, Env: cfg.Env, Dir: cfg.WorkingDir, User: cfg.User, Volumes: slices.Sorted(maps.Keys(cfg.Volumes)),
		}, nil
	})
	if err != nil {
		return err
	}
	m := &trust.Manifest{Network: "pod"}
	for _, member := range p.Containers {
		c, err := a.podContainer(ctx, images, found[member.Image], &member)
		if err != nil {
			return fmt.Errorf("container %s: %w", member.Name, err)
		}
		m.Containers = append(m.Containers, *c)
	}
	if err := a.writeManifest(m, o); err != nil {
		return err
	}
	var size string
	if p.Resources.MemoryBytes > 0 {
		size += fmt.Sprintf(" -m %d", p.Resources.MemoryBytes)
	}
	if p.Resources.MilliCPUs > 0 {
		size += fmt.Sprintf(" --cpus %g", float64(p.Resources.MilliCPUs)/1000)
	}
	if size != "" {
		fmt.Fprintf(a.err, "Its machine is of the size of: manis trust measure%s\n", size)
	}
	return nil
}

// podContainer is a container in a manifest.
func (a *app) podContainer(ctx context.Context, images *image.Store, img *image.Image, member *workload.Member) (*trust.Container, error) {
	progress := a.progress(a.err, false)
	root, release, err := images.Rootfs(ctx, img, progress.event)
	progress.close()
	if err != nil {
		return nil, err
	}
	defer release()
	request, err := member.Request(monitor.VerityOf(root))
	if err != nil {
		return nil, err
	}
	c, err := trust.Of(request, false)
	if err != nil {
		return nil, err
	}
	c.Image, c.Completes = img.ID, member.Completes
	for i := range c.Files {
		switch f := &c.Files[i]; f.Path {
		case workload.HostsFile:
			f.Form = trust.Hosts
		case workload.ResolverFile:
			f.Form, f.SHA256 = trust.Resolver, ""
		}
	}
	return c, nil
}
