package cli

import (
	"context"
	"fmt"
	"strings"

	"manis/container"
	"manis/container/spec"
	"manis/image"
	"manis/image/reference"
	"manis/image/registry"
	"manis/policy"
)

// permission is the operator's policy as this command has read it, once, and what it has allowed already.
type permission struct {
	read   bool
	policy *policy.Policy // nil: there is none
	// container was allowed by this command.
	container string
}

// operator reads the operator's policy; nil: there is none.
func (a *app) operator() (*policy.Policy, error) {
	if a.permission.read {
		return a.permission.policy, nil
	}
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	p, err := policy.Load(places.Policy())
	if err != nil {
		return nil, err
	}
	a.permission.read, a.permission.policy = true, p
	return p, nil
}

// permitReference refuses an image before it is pulled.
func (a *app) permitReference(images *image.Store, ref string) error {
	p, err := a.operator()
	if p == nil || err != nil {
		return err
	}
	asked, err := askedImage(images, ref, "")
	if err != nil {
		return err
	}
	asked.Remote = true
	return p.Check(&policy.Request{Image: asked})
}

// askedImage is an image as a policy looks at it. What ref does not name by a reference, the store knows.
func askedImage(images *image.Store, ref, id string) (*policy.Image, error) {
	asked := &policy.Image{Asked: ref}
	bare := strings.TrimPrefix(ref, "sha256:")
	stored, err := images.Resolve(ref)
	byID := err == nil && strings.HasPrefix(stored.ID, "sha256:"+bare)
	if n, err := reference.Parse(ref); err == nil && !byID {
		asked.Names, asked.ByDigest = []string{n.String()}, n.Digest != ""
		return asked, nil
	}
	if id != "" {
		stored, err = images.Resolve(id)
	}
	if err != nil {
		return nil, err
	}
	for _, name := range append(append([]string{}, stored.Names...), stored.RepoDigests...) {
		if n, err := reference.Parse(name); err == nil {
			asked.Names = append(asked.Names, n.String())
		}
	}
	asked.ByDigest = len(bare) == len(stored.ID)-len("sha256:")
	return asked, nil
}

// permit refuses a container that the operator's policy does not allow, or that it cannot be read for.
func (a *app) permit(ctx context.Context, cfg *container.Config, insecure bool) error {
	p, err := a.operator()
	if p == nil || err != nil || a.permission.container == cfg.ID {
		return err
	}
	d, err := a.decide(ctx, p, cfg, insecure, true)
	if err == nil {
		err = d.Err()
	}
	if err == nil {
		a.permission.container = cfg.ID
	}
	return err
}

// decide asks a policy about a container, whose image is in the store. Signatures are those that were found before, and with
// fetch those that the registry has.
func (a *app) decide(ctx context.Context, p *policy.Policy, cfg *container.Config, insecure, fetch bool) (*policy.Decision, error) {
	r, err := spec.Request(cfg)
	if err != nil {
		return nil, err
	}
	images, err := a.images()
	if err != nil {
		return nil, err
	}
	if r.Image, err = askedImage(images, cfg.Image, cfg.ImageID); err != nil {
		return nil, fmt.Errorf("find the image of the container for the policy: %w", err)
	}
	if !p.Signs(r.Image.Names) {
		return p.Decide(r), nil
	}
	img, err := images.Resolve(cfg.ImageID)
	if err != nil {
		return nil, err
	}
	r.Image.Digests = img.Digests()
	if r.Image.Signatures, err = images.KeptSignatures(img); err != nil {
		return nil, err
	}
	d := p.Decide(r)
	if !fetch || d.Err() == nil {
		return d, nil
	}
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	hosts, err := registry.LoadHosts(places.Registries())
	if err != nil {
		return nil, err
	}
	fetched, err := images.FetchSignatures(ctx, img, r.Image.Names, image.PullOptions{Hosts: hosts, Insecure: insecure})
	if err != nil {
		r.Image.Missing = err
		return p.Decide(r), nil
	}
	r.Image.Signatures = fetched
	return p.Decide(r), nil
}

// decideAbsent asks a policy about a container whose image is not in the store.
func (a *app) decideAbsent(p *policy.Policy, images *image.Store, cfg *container.Config) (*policy.Decision, error) {
	r, err := spec.Request(cfg)
	if err != nil {
		return nil, err
	}
	if r.Image, err = askedImage(images, cfg.Image, ""); err != nil {
		return nil, err
	}
	r.Image.Remote = true
	return p.Decide(r), nil
}
