// Command image makes the image of the DaemonSet that installs Manis: manis-node and the files of a release, and nothing else.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"manis/node"
)

func main() {
	out := flag.String("o", "build/manis-node", "the OCI layout to make")
	name := flag.String("name", "docker.io/library/manis-node", "the image's name")
	tag := flag.String("tag", "latest", "the image's tag")
	bin := flag.String("bin", "bin", "the directory of the programs")
	guest := flag.String("guest", "guest/image", "the directory of the guest image")
	flag.Parse()
	if err := write(*out, *name, *tag, *bin, *guest); err != nil {
		fmt.Fprintln(os.Stderr, "make the image:", err)
		os.Exit(1)
	}
}

func write(out, name, tag, bin, guest string) error {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return content(bin, guest) })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, "application/vnd.oci.image.config.v1+json"), "application/vnd.oci.image.manifest.v1+json"), layer)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Entrypoint = []string{"/bin/manis-node"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	if _, err := layout.FromPath(out); err == nil {
		if err := os.RemoveAll(out); err != nil {
			return err
		}
	} else if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("%s is there and is no OCI layout", out)
	}
	to, err := layout.Write(out, empty.Index)
	if err != nil {
		return err
	}
	return to.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		layout.WithAnnotations(map[string]string{"io.containerd.image.name": name + ":" + tag, "org.opencontainers.image.ref.name": tag}))
}

// content is the layer: the same for the same files, whenever it is made.
func content(bin, guest string) (io.ReadCloser, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"bin/", "lib/", "lib/manis/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, name := range append([]string{"bin/manis-node"}, node.Files()...) {
		from, mode := filepath.Join(guest, path.Base(name)), int64(0o644)
		if path.Dir(name) == "bin" {
			from, mode = filepath.Join(bin, path.Base(name)), 0o755
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(text))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return io.NopCloser(&b), nil
}
