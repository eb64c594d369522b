package soak

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Containers of all kinds, with and without machines that wait, leave nothing. `make soak` does so a
// thousand times.
func TestSoak(t *testing.T) {
	t.Parallel()
	if err := Run(t.Context(), Options{Binary: binary(t), Cycles: 3, Waiting: 1, Log: testLog{t}}); err != nil {
		t.Error(err)
	}
}

// What a cycle leaves behind is reported, and so is one that fails.
func TestLeaksAreReported(t *testing.T) {
	t.Parallel()
	count := 0
	for want, live := range map[string]func(context.Context, *installation, string) error{
		"file root/containers/soak-#: 4, was 1": func(_ context.Context, in *installation, container string) error {
			return os.MkdirAll(filepath.Join(in.Root, "containers", container), 0o755)
		},
		"process sleep": func(_ context.Context, in *installation, _ string) error {
			cmd := exec.Command("sleep", "100")
			cmd.Env = in.env
			if err := cmd.Start(); err != nil {
				return err
			}
			go cmd.Wait()
			return nil
		},
		"left behind without a daemon": func(_ context.Context, in *installation, _ string) error {
			return os.WriteFile(filepath.Join(in.Further[0], "one"), nil, 0o644)
		},
		"cycle 2, planted: it fails": func(context.Context, *installation, string) error {
			if count++; count == 2 {
				return errors.New("it fails")
			}
			return nil
		},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			err := Run(t.Context(), Options{Binary: binary(t), Cycles: 3, Log: testLog{t}, cycles: []cycle{{"planted", live}}, restTime: 3 * time.Second})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/manis")
	if err != nil {
		t.Fatal(err)
	}
	if other := os.Getenv("MANIS_TEST_BINARY"); other != "" {
		path = other
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("nothing to test: %v (make build)", err)
	}
	return path
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}
