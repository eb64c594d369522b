package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"manis/image"
	"manis/image/reference"
	"manis/image/registry"
)

type pullFlags struct {
	platform        string
	quiet, insecure bool
}

func (a *app) pullCommand() *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use:               "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Short:             "Download an image from a registry",
		Args:              needs(1, 1),
		ValidArgsFunction: a.imageNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return asInterrupted(ctx, a.pullImage(ctx, args[0], f))
		},
	}
	cmd.Flags().StringVar(&f.platform, "platform", "", "Set platform if the image is multi-platform (os/arch[/variant])")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "Suppress verbose output")
	cmd.Flags().BoolVar(&f.insecure, "insecure", false, "Allow plain HTTP and unknown certificates")
	return cmd
}

func (a *app) pullImage(ctx context.Context, ref string, f pullFlags) error {
	images, err := a.images()
	if err != nil {
		return err
	}
	platform := image.HostPlatform()
	if f.platform != "" {
		if platform, err = image.ParsePlatform(f.platform); err != nil {
			return err
		}
	}
	name, err := reference.Parse(ref)
	if err != nil {
		return err
	}
	if !f.quiet && name.Digest == "" && tagged(ref) != ref {
		fmt.Fprintln(a.out, "Using default tag: latest")
	}
	before, _ := images.Resolve(ref)
	img, err := a.pull(ctx, images, ref, platform, pulling{quiet: f.quiet, insecure: f.insecure, out: a.out})
	if err != nil {
		return err
	}
	if !f.quiet {
		for _, d := range img.RepoDigests {
			if _, digest, ok := strings.Cut(d, "@"); ok && len(img.RepoDigests) == 1 {
				fmt.Fprintf(a.out, "Digest: %s\n", digest)
			}
		}
		news := "Downloaded newer image for"
		if before != nil && before.ID == img.ID {
			news = "Image is up to date for"
		}
		fmt.Fprintf(a.out, "Status: %s %s\n", news, name.Familiar())
	}
	fmt.Fprintln(a.out, name.String())
	return nil
}

// pulling is how to pull.
type pulling struct {
	quiet, insecure bool
	out             *os.File
}

// pull downloads an image and shows how it goes.
func (a *app) pull(ctx context.Context, images *image.Store, ref string, platform v1.Platform, how pulling) (*image.Image, error) {
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	hosts, err := registry.LoadHosts(places.Registries())
	if err != nil {
		return nil, err
	}
	p := a.progress(how.out, how.quiet)
	img, err := images.Pull(ctx, ref, image.PullOptions{Platform: platform, Progress: p.event, Hosts: hosts, Insecure: how.insecure})
	p.close()
	if err != nil && context.Cause(ctx) != nil {
		return nil, context.Cause(ctx)
	}
	return img, err
}

func samePlatform(img *image.Image, want string) bool {
	p, err := image.ParsePlatform(want)
	return err == nil && p.OS == img.Platform.OS && p.Architecture == img.Platform.Architecture &&
		(p.Variant == "" || p.Variant == img.Platform.Variant)
}

// runnable refuses what is for another machine, before it is pulled or booted: a
// container's kernel executes the host's instructions and no others, but on amd64 also
// those of the 32-bit 386.
func runnable(ref string, p v1.Platform) error {
	host := image.HostPlatform()
	if p.OS == host.OS && (p.Architecture == host.Architecture || host.Architecture == "amd64" && p.Architecture == "386") {
		return nil
	}
	return fmt.Errorf("image %s for %s cannot run: virtual machines of this host run %s", ref, p.String(), host.String())
}

func (a *app) loadCommand() *cobra.Command {
	var input, tag, platform string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "load [OPTIONS] [PATH]",
		Short: "Load images from an archive of docker save, an OCI archive, or an OCI layout",
		Long:  "Load images from an archive of docker save, an OCI archive, or the directory of an\nOCI layout; without a path from STDIN.",
		Args:  needs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if input != "" {
					return &usageError{errors.New("conflicting options: cannot specify both --input and a path")}
				}
				input = args[0]
			}
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return asInterrupted(ctx, a.load(ctx, input, tag, platform, quiet))
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "Read from tar archive file or OCI layout, instead of STDIN")
	cmd.Flags().StringVar(&tag, "tag", "", "Name the image, which must be the only one")
	cmd.Flags().StringVar(&platform, "platform", "", "Load only the given platform (os/arch[/variant])")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	return cmd
}

func (a *app) load(ctx context.Context, input, tag, platform string, quiet bool) error {
	images, err := a.images()
	if err != nil {
		return err
	}
	opts := image.LoadOptions{Tag: tag}
	if platform != "" {
		if opts.Platform, err = image.ParsePlatform(platform); err != nil {
			return err
		}
	}
	if input == "" || input == "-" {
		path, remove, err := a.spool()
		if err != nil {
			return err
		}
		defer remove()
		input = path
	}
	p := a.progress(a.err, quiet)
	opts.Progress = p.event
	loaded, err := images.Load(ctx, input, opts)
	p.close()
	if err != nil {
		return err
	}
	for _, img := range loaded {
		if len(img.Names) == 0 {
			fmt.Fprintf(a.out, "Loaded image ID: %s\n", img.ID)
		}
		for _, name := range img.Names {
			fmt.Fprintf(a.out, "Loaded image: %s\n", name)
		}
	}
	return nil
}

// spool keeps an archive from stdin in a file: a reader of images goes to and fro.
func (a *app) spool() (path string, remove func(), err error) {
	if isTerminal(a.in) {
		return "", nil, errors.New("requested load from stdin, but stdin is empty (it is a terminal)")
	}
	places, err := a.places()
	if err != nil {
		return "", nil, err
	}
	// Beside the store, which has room for what it is about to hold.
	f, err := os.CreateTemp(places.Root, ".load-*")
	if err != nil {
		return "", nil, fmt.Errorf("keep the archive from stdin: %w", err)
	}
	remove = func() { os.Remove(f.Name()) }
	_, err = io.Copy(f, a.in)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		remove()
		return "", nil, fmt.Errorf("keep the archive from stdin: %w", err)
	}
	return f.Name(), remove, nil
}
