package validation

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"manis/test/stage"
)

// suiteModule is the module of the tests. Its version and the checksums are in suite/go.mod and go.sum.
const suiteModule = "github.com/opencontainers/runtime-tools"

// inside is the suite's program that runs in containers.
const inside = "runtimetest"

// suite is a directory with the built tests and what they expect in their working directory.
type suite struct {
	dir   string
	tests []string
}

// build makes the suite in the cache, unless it is there. top is Manis's source.
func build(ctx context.Context, top string) (*suite, error) {
	tool := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, filepath.Join(top, "scripts/go"), args...)
		cmd.Dir = filepath.Join(top, "test/validation/suite")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("go %s: %w", args[0], err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	if _, err := tool("mod", "download", suiteModule); err != nil {
		return nil, err
	}
	found, err := tool("list", "-m", "-f", "{{.Version}} {{.Dir}}", suiteModule)
	if err != nil {
		return nil, err
	}
	version, source, ok := strings.Cut(found, " ")
	if !ok {
		return nil, fmt.Errorf("the module proxy has not given %s", suiteModule)
	}
	cache, err := stage.CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "validation", version)
	if s, err := load(dir); err == nil {
		return s, nil
	}
	work := dir + ".building"
	if err := errors.Join(os.RemoveAll(work), os.MkdirAll(work, 0o755)); err != nil {
		return nil, err
	}
	if _, err := tool("build", "-trimpath", "-o", work+"/", suiteModule+"/validation/...", suiteModule+"/cmd/"+inside); err != nil {
		return nil, err
	}
	root, err := os.ReadFile(filepath.Join(source, rootArchive()))
	if err != nil {
		return nil, err
	}
	// The last thing that load looks for.
	if err := os.WriteFile(filepath.Join(work, rootArchive()), root, 0o644); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(work, dir)); err != nil {
		return nil, err
	}
	return load(dir)
}

func rootArchive() string { return "rootfs-" + runtime.GOARCH + ".tar.gz" }

func load(dir string) (*suite, error) {
	if _, err := os.Stat(filepath.Join(dir, rootArchive())); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	s := &suite{dir: dir}
	for _, e := range entries {
		if e.Name() != inside && e.Name() != rootArchive() {
			s.tests = append(s.tests, e.Name())
		}
	}
	if len(s.tests) == 0 {
		return nil, fs.ErrNotExist
	}
	slices.Sort(s.tests)
	return s, nil
}
