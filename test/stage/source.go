package stage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"sync"
)

// Source is what programs of others are built from: a module of its own, which names their version and the checksums
// of all that goes into them.
type Source struct {
	// Name is the folder below test whose suite/go.mod it is. Programs of that module's own lie in folders beside it.
	Name string
	// Packages are the programs; each is named like the last part of its path.
	Packages []string
	// Tests are packages whose tests become programs, named like the last part of the path with .test.
	Tests []string
	// Flags are further flags of go build.
	Flags []string
}

// Build returns the directory of the programs. They are built if they are not in the cache, where they lie by what
// they are built from; that may take minutes, and lets others go first.
func (s Source) Build(ctx context.Context) (string, error) {
	suite := filepath.Join(top, "test", s.Name, "suite")
	hash := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(suite, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%d\n%s", len(b), b)
	}
	// What the module has of its own.
	own, err := filepath.Glob(filepath.Join(suite, "*", "*.go"))
	if err != nil {
		return "", err
	}
	for _, file := range own {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n%s", filepath.Base(file), len(b), b)
	}
	if len(s.Tests) > 0 {
		fmt.Fprintf(hash, "%q", s.Tests)
	}
	version := exec.CommandContext(ctx, filepath.Join(top, "scripts/go"), "env", "GOVERSION", "GOARCH")
	version.Dir = suite
	tool, err := version.Output()
	if err != nil {
		return "", fmt.Errorf("find the Go toolchain: %w", err)
	}
	fmt.Fprintf(hash, "%s%q%q", tool, s.Packages, s.Flags)
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, s.Name, hex.EncodeToString(hash.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	make := func(verb []string, to string, packages ...string) error {
		args := slices.Concat([]string{"-n", "10", filepath.Join(top, "scripts/go")}, verb, []string{"-trimpath", "-o", to}, s.Flags, packages)
		program := "nice"
		if onStage {
			// There, there is no way to the modules' sources.
			program, args = "nsenter", append([]string{fmt.Sprintf("--net=/proc/self/fd/%d", outside), program}, args...)
		}
		cmd := exec.CommandContext(ctx, program, args...)
		if onStage {
			cmd.ExtraFiles = []*os.File{network()}
		}
		cmd.Dir = suite
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", s.Name, err)
		}
		return nil
	}
	if err := make([]string{"build"}, work+"/", s.Packages...); err != nil {
		return "", err
	}
	for _, p := range s.Tests {
		if err := make([]string{"test", "-c"}, filepath.Join(work, path.Base(p)+".test"), p); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", err
	}
	// Another one may have been faster.
	if err := os.Rename(work, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// network is the namespace outside of the stage, a descriptor that is never closed.
var network = sync.OnceValue(func() *os.File { return os.NewFile(outside, "network") })

// CacheDir is where what is built once is kept.
func CacheDir() (string, error) {
	if dir := os.Getenv("MANIS_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "manis"), nil
}

// Containerd is containerd of the version that test/containerd/suite names, with its command line and its shim for runc.
var Containerd = Source{
	Name:  "containerd",
	Flags: []string{"-tags", "no_btrfs,no_devmapper,no_zfs"},
	Packages: []string{
		"github.com/containerd/containerd/v2/cmd/containerd",
		"github.com/containerd/containerd/v2/cmd/ctr",
		"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
	},
}
