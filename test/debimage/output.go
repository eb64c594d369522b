package debimage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// WriteLayout writes an OCI layout with this image at dir, replacing a layout that is there and
// refusing to touch any other directory. A tag, if not "", is noted in the index by both
// annotations in use ("busybox:latest" as docker.io/library/busybox:latest and latest).
func WriteLayout(dir string, img v1.Image, tag string) error {
	annotations := map[string]string{}
	if tag != "" {
		ref, err := name.NewTag(tag)
		if err != nil {
			return err
		}
		annotations["io.containerd.image.name"] = full(ref)
		annotations["org.opencontainers.image.ref.name"] = ref.TagStr()
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(parent, ".layout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	out, err := layout.Write(work, empty.Index)
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	err = out.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}), layout.WithAnnotations(annotations))
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	if err := readable(work); err != nil {
		return err
	}
	if err := removeLayout(dir); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// readable opens the layout's files to everyone: some are written by way of private temporary files,
// and who builds an image as root runs it as somebody else.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		return os.Chmod(path, 0o644)
	})
}

// removeLayout removes a layout or an empty directory, and nothing else.
func removeLayout(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err == nil {
		return os.RemoveAll(dir)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is there and is not an OCI layout: %w", dir, err)
	}
	return nil
}

// WriteArchive writes a `docker save` archive with this image under this tag.
func WriteArchive(path string, img v1.Image, tag string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	temporary := path + ".partial"
	defer os.Remove(temporary)
	if err := tarball.WriteToFile(temporary, ref, img); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return os.Rename(temporary, path)
}

// Push uploads the image to a registry, by plain HTTP if it is on loopback.
func Push(ctx context.Context, ref string, img v1.Image) error {
	var options []name.Option
	if parsed, err := name.ParseReference(ref); err == nil && loopback(parsed.Context().RegistryStr()) {
		options = append(options, name.Insecure)
	}
	to, err := name.ParseReference(ref, options...)
	if err != nil {
		return err
	}
	if err := remote.Write(to, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// loopback says whether a registry, host or host:port, is this machine.
func loopback(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// full spells a tag the way containerd does, with docker.io for Docker Hub.
func full(tag name.Tag) string {
	registry := tag.RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	return registry + "/" + tag.RepositoryStr() + ":" + tag.TagStr()
}
