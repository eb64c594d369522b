package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A runtime is measured, or is reported as missing, unless it was to be left out: never
// both, never neither.
func TestGatherTakesExactlyWhatIsWanted(t *testing.T) {
	all := []string{"manis", "runc", "crun", "runsc"}
	for name, skip := range map[string][]string{
		"everything":          {""},
		"without two":         {"runc", "crun"},
		"without other two":   {"crun", "runsc"},
		"without the first":   {"manis"},
		"only the last":       {"manis", "runc", "crun"},
		"what does not exist": {"podman", "runsc"},
	} {
		t.Run(name, func(t *testing.T) {
			// Runtimes that always succeed, and nothing else, are in PATH.
			dir := t.TempDir()
			bin := filepath.Join(dir, "bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, tool := range all {
				if err := os.WriteFile(filepath.Join(bin, tool), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", bin)
			b := &bench{Report: &Report{Versions: make(map[string]string)}, log: io.Discard,
				w: &workshop{dir: dir, bundles: filepath.Join(dir, "bundles"), log: io.Discard}}
			if err := b.gather(context.Background(), filepath.Join(bin, "manis"), "auto", skip); err != nil {
				t.Fatal(err)
			}
			for _, tool := range all {
				measured := slices.ContainsFunc(b.subjects, func(s subject) bool { return s.name() == tool })
				missing := slices.ContainsFunc(b.Skipped, func(s Skip) bool { return s.Subject == tool })
				_, versioned := b.Versions[tool]
				left := slices.Contains(skip, tool)
				if measured && missing || (measured || missing) == left || measured != versioned {
					t.Errorf("%s: measured %v, missing %v, versioned %v, to be left out %v", tool, measured, missing, versioned, left)
				}
			}
		})
	}
}
