package debimage

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// buildDebian makes the minimal system, once for all recipes, and a second layer with the
// recipe's own packages.
func (b *Builder) buildDebian(ctx context.Context, r Recipe, work string) (v1.Image, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNeedsRoot
	}
	for _, tool := range []string{"debootstrap", "unshare", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: %s is not installed (apt-get install debootstrap util-linux tar)", ErrUnavailable, tool)
		}
	}
	from, err := findSource()
	if err != nil {
		return nil, err
	}
	digest, err := digestOf([]any{generation, from, cleanUp})
	if err != nil {
		return nil, err
	}
	base, err := b.cached(ctx, "minbase-"+digest, func(ctx context.Context, work string) (v1.Image, error) {
		return b.debootstrap(ctx, from, work)
	})
	if err != nil {
		return nil, err
	}
	layers, err := base.Layers()
	if err != nil {
		return nil, err
	}
	if len(r.Packages) > 0 || r.Before != "" || r.After != "" {
		layer, err := b.extend(ctx, layers, r, work)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return assemble(r.config(), layers...)
}

func (b *Builder) debootstrap(ctx context.Context, from source, work string) (v1.Image, error) {
	root := filepath.Join(work, "root")
	b.sayf("debootstrap %s from %s (a minute or two, once)", from.Suite, from.Mirror)
	c := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", from.Suite, root, from.Mirror)
	c.Env = append(os.Environ(), b.proxy(ctx)...)
	c.Stdout, c.Stderr = b.log(), b.log()
	if err := c.Run(); err != nil {
		// Its log says which package failed; what it printed is in ours.
		log, _ := os.ReadFile(filepath.Join(root, "debootstrap", "debootstrap.log"))
		return nil, fmt.Errorf("%w: debootstrap %s %s: %w: %s", ErrUnavailable, from.Suite, from.Mirror, err, tail(log))
	}
	if err := b.inside(ctx, root, cleanUp); err != nil {
		return nil, err
	}
	layer, err := writeLayer(filepath.Join(work, "layer.tar.gz"), func(w *tar.Writer) error {
		return writeChanges(w, root, nil)
	})
	if err != nil {
		return nil, err
	}
	return assemble((Recipe{}).config(), layer)
}

// cleanUp removes what belongs to the machine that built the image, or comes back by itself.
const cleanUp = `apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/lib/dpkg/*-old
find /var/log -type f -delete
rm -f /etc/resolv.conf /etc/hostname /usr/sbin/policy-rc.d
: >/etc/machine-id`

// extend installs the recipe's packages above the given layers and returns what changed.
func (b *Builder) extend(ctx context.Context, layers []v1.Layer, r Recipe, work string) (v1.Layer, error) {
	root := filepath.Join(work, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	for _, layer := range layers {
		if err := unpack(ctx, layer, root); err != nil {
			return nil, err
		}
	}
	base, err := takeSnapshot(root)
	if err != nil {
		return nil, err
	}
	b.sayf("installing %s", strings.Join(r.Packages, " "))
	resolver, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(root, "etc/resolv.conf"), resolver, 0o644); err != nil {
		return nil, err
	}
	// Asked before a package starts its service; 101 forbids it.
	if err := os.WriteFile(filepath.Join(root, "usr/sbin/policy-rc.d"), []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return nil, err
	}
	install := ""
	if len(r.Packages) > 0 {
		install = "apt-get update -q\napt-get install -q -y --no-install-recommends " + strings.Join(r.Packages, " ")
	}
	for _, script := range []string{r.Before, install, r.After, cleanUp} {
		if err := b.inside(ctx, root, script); err != nil {
			return nil, err
		}
	}
	return writeLayer(filepath.Join(work, "layer.tar.gz"), func(w *tar.Writer) error {
		return writeChanges(w, root, base)
	})
}

// unpack extracts a layer that has no whiteouts, with everything that belongs to its files.
func unpack(ctx context.Context, layer v1.Layer, root string) error {
	content, err := layer.Uncompressed()
	if err != nil {
		return err
	}
	defer content.Close()
	c := exec.CommandContext(ctx, "tar", "-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", root)
	c.Stdin = content
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack layer: %w: %s", err, tail(out))
	}
	return nil
}

// inside runs a script in the tree at root, in mount and process namespaces of its own: what it
// mounts or starts ends with it.
func (b *Builder) inside(ctx context.Context, root, script string) error {
	if script == "" {
		return nil
	}
	const enter = `mount -t proc proc "$1/proc" && root=$1 script=$2 && shift 2 && exec chroot "$root" /usr/bin/env -i "$@" sh -euc "$script"`
	arguments := []string{"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-euc", enter, "sh", root, script,
		defaultPath, "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	c := exec.CommandContext(ctx, "unshare", append(arguments, b.proxy(ctx)...)...)
	var out strings.Builder
	c.Stdout, c.Stderr = b.log(), b.log()
	if b.Log == nil {
		c.Stdout, c.Stderr = &out, &out
	}
	if err := c.Run(); err != nil {
		return fmt.Errorf("%w: set up the Debian system: %w: %s", ErrUnavailable, err, tail([]byte(out.String())))
	}
	return nil
}

// proxy returns the environment for downloads: the caller's, or what apt is configured with.
func (b *Builder) proxy(ctx context.Context) []string {
	var env []string
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	if len(env) > 0 {
		return env
	}
	out, err := exec.CommandContext(ctx, "apt-config", "shell", "proxy", "Acquire::http::Proxy").Output()
	if err != nil {
		return nil
	}
	// The answer is a shell assignment: proxy='http://...'
	_, value, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
	if value = strings.Trim(value, "'"); value == "" || value == "DIRECT" {
		return nil
	}
	return []string{"http_proxy=" + value}
}
