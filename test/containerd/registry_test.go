package containerd

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// file is one of a layer.
type file struct {
	name string
	mode int64
	body string
}

// derived is the box image with further files and a changed configuration.
func derived(t testing.TB, change func(*v1.Config), files ...file) v1.Image {
	t.Helper()
	img, err := derive(t, change, files)
	if err != nil {
		t.Fatalf("make an image: %v", err)
	}
	return img
}

func derive(t testing.TB, change func(*v1.Config), files []file) (v1.Image, error) {
	dir, _ := stage.Box(t)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: f.mode, Size: int64(len(f.body)), ModTime: time.Unix(1700000000, 0)}); err != nil {
				return nil, err
			}
			if _, err := io.WriteString(w, f.body); err != nil {
				return nil, err
			}
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
	}
	if change == nil {
		return img, nil
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c := config.DeepCopy().Config
	change(&c)
	return mutate.Config(img, c)
}

// hub is a registry on loopback that containerd asks instead of every other one. What is
// example.com/a/b elsewhere is a/b here.
var hub struct {
	once sync.Once
	addr string
	err  error
}

// hubAddress starts the registry.
func hubAddress() (string, error) {
	hub.once.Do(func() {
		// Until the tests end.
		server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		hub.addr = strings.TrimPrefix(server.URL, "http://")
		if hub.err = os.MkdirAll(dir("hosts", "_default"), 0o755); hub.err != nil {
			return
		}
		hub.err = os.WriteFile(dir("hosts", "_default", "hosts.toml"), fmt.Appendf(nil, "server = %[1]q\n[host.%[1]q]\n  capabilities = ['pull', 'resolve']\n", server.URL), 0o644)
	})
	return hub.addr, hub.err
}

// push brings an image to the registry, where it is found under all names that end so.
func push(t testing.TB, img v1.Image, repository string) {
	t.Helper()
	addr, err := hubAddress()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(addr+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatalf("push %s: %v", repository, err)
	}
}

// setuidProgram prints its effective user, and in an image it belongs to root with the setuid bit.
func setuidProgram(t testing.TB) file {
	t.Helper()
	src := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() { fmt.Println(\"Effective uid:\", os.Geteuid()) }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(filepath.Dir(src), "program")
	cmd := exec.Command(filepath.Join(stage.Top(), "scripts", "go"), "build", "-trimpath", "-ldflags", "-s -w", "-o", out, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a program: %v: %s", err, said)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return file{"nnp", 0o4755, string(b)}
}

// pull has containerd take an image from the registry, until the test ends.
func pull(t testing.TB, name string) {
	t.Helper()
	kubelet(t)
	images := cri.NewImageServiceClient(suite.conn)
	if _, err := images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}}); err != nil {
		t.Fatalf("PullImage: %v", err)
	}
}
