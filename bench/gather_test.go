package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A runtime is measured, or is reported as missing, unless it was to be left out: never
// both, never neither.
func TestGatherTakesExactlyWhatIsWanted(t *testing.T) {
	for name, skip := range map[string][]string{
		"everything":        nil,
		"without two":       {"runc", "crun"},
		"without other two": {"crun", "runsc"},
		"without the first": {"manis"},
		"only the last":     {"manis", "runc", "crun"},
	} {
		t.Run(name, func(t *testing.T) {
			// Runtimes that always succeed, and nothing else, are in PATH.
			dir := t.TempDir()
			bin := filepath.Join(dir, "bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, tool := range subjectNames {
				if err := os.WriteFile(filepath.Join(bin, tool), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", bin)
			b := &bench{Report: &Report{Versions: make(map[string]string)}, log: io.Discard,
				w: &workshop{dir: dir, bundles: filepath.Join(dir, "bundles"), log: io.Discard}}
			if err := b.gather(context.Background(), &options{binary: filepath.Join(bin, "manis"), accel: "auto", skip: skip, sections: []string{"start"}}); err != nil {
				t.Fatal(err)
			}
			for _, tool := range subjectNames {
				measured := slices.ContainsFunc(b.subjects, func(s subject) bool { return s.name() == tool })
				missing := slices.ContainsFunc(b.Skipped, func(s Skip) bool { return s.Subject == tool })
				_, versioned := b.Versions[tool]
				left := slices.Contains(skip, tool)
				if len(b.Series) != 0 {
					t.Errorf("the image was measured, which was not asked for: %+v", b.Series)
				}
				if measured && missing || (measured || missing) == left || measured != versioned {
					t.Errorf("%s: measured %v, missing %v, versioned %v, to be left out %v", tool, measured, missing, versioned, left)
				}
			}
		})
	}
}

// What is to be left out is not reported as missing either.
func TestGatherWithoutABinary(t *testing.T) {
	b := &bench{Report: &Report{Versions: make(map[string]string)}, log: io.Discard, w: &workshop{dir: t.TempDir(), log: io.Discard}}
	if err := b.gather(context.Background(), &options{binary: "/nothing", skip: subjectNames}); err == nil || len(b.Skipped) != 0 {
		t.Errorf("got %v, missing %v", err, b.Skipped)
	}
	if err := b.gather(context.Background(), &options{binary: "/nothing", skip: subjectNames[1:]}); err == nil || len(b.Skipped) != 1 || b.Skipped[0].Subject != "manis" {
		t.Errorf("got %v, missing %v", err, b.Skipped)
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		args           string
		sections, skip []string
		fails          string
	}{
		{"", sectionNames, nil, ""},
		{"-only|start", []string{"start"}, nil, ""},
		{"-only|start,memory", []string{"start", "memory"}, nil, ""},
		{"-only|start, memory ,start", []string{"start", "memory"}, nil, ""},
		{"-only|start|-only|image", []string{"start", "image"}, nil, ""},
		{"-skip|runc, crun", sectionNames, []string{"runc", "crun"}, ""},
		{"-skip|runc|-skip|runsc|-only|files", []string{"files"}, []string{"runc", "runsc"}, ""},
		{"-skip|manis,runc,crun,runsc", sectionNames, subjectNames, ""},
		{"-skip|podman", nil, nil, `unknown runtime "podman": there are manis, runc, crun, runsc`},
		{"-skip|runc,,crun", nil, nil, `unknown runtime ""`},
		{"-skip|", nil, nil, `unknown runtime ""`},
		{"-only|starts", nil, nil, `unknown section "starts"`},
		{"-only|manis", nil, nil, `unknown section "manis"`},
		{"-skip|runc|crun", nil, nil, "wrong arguments"},
		{"-only|burst,density", []string{"burst", "density"}, nil, ""},
		{"-gate|-accept", nil, nil, "wrong arguments"},
		{"-burst|0", nil, nil, "wrong arguments"},
		{"-rounds|0", nil, nil, "wrong arguments"},
	} {
		var args []string
		if tt.args != "" {
			args = strings.Split(tt.args, "|")
		}
		o, err := parse(args, io.Discard)
		switch {
		case tt.fails != "" || err != nil:
			if err == nil || tt.fails == "" || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%q: error %v, want %q", args, err, tt.fails)
			}
		case !slices.Equal(o.sections, tt.sections) || !slices.Equal(o.skip, tt.skip):
			t.Errorf("%q: sections %q, without %q", args, o.sections, o.skip)
		}
	}
}
