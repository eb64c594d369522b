package place

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindPrefersFlagsThenEnvironment(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "/c")
	tests := []struct {
		name, root, run, envRoot, envRun string
		wantRoot, wantRun                string
	}{
		{"flags win", "/f", "/g", "/e", "/h", "/f", "/g"},
		{"environment", "", "", "/e", "/h", "/e", "/h"},
		{"mixed", "/f", "", "/e", "/h", "/f", "/h"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(RootVariable, tt.envRoot)
			t.Setenv(RunVariable, tt.envRun)
			p, err := Find(tt.root, tt.run)
			if err != nil {
				t.Fatal(err)
			}
			if p.Root != tt.wantRoot || p.Run != tt.wantRun || p.Cache != "/c/manis" {
				t.Errorf("got %+v", p)
			}
		})
	}
}

func TestFindRefusesLongRunDirectory(t *testing.T) {
	if _, err := Find("/r", "/"+strings.Repeat("x", maxRun)); err == nil {
		t.Error("no error for a run directory too long for sockets")
	}
	if _, err := Find("/r", "/"+strings.Repeat("x", maxRun-1)); err != nil {
		t.Errorf("longest allowed run directory: %v", err)
	}
}

func TestMakeInsistsOnItsOwnRunDirectory(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name    string
		prepare func(t *testing.T, run string)
		ok      bool
	}{
		{"missing", func(*testing.T, string) {}, true},
		{"ours", func(t *testing.T, run string) { check(t, os.Mkdir(run, 0o700)) }, true},
		{"open to others", func(t *testing.T, run string) {
			check(t, os.Mkdir(run, 0o700))
			check(t, os.Chmod(run, 0o777))
		}, false},
		{"a link", func(t *testing.T, run string) { check(t, os.Symlink("/", run)) }, false},
		{"a file", func(t *testing.T, run string) { check(t, os.WriteFile(run, nil, 0o600)) }, false},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run := filepath.Join(dir, string(rune('a'+i)))
			tt.prepare(t, run)
			p := &Places{Root: filepath.Join(dir, "root"), Run: run}
			if err := p.Make(); (err == nil) != tt.ok {
				t.Errorf("Make: %v", err)
			}
		})
	}
}

func TestGuestLayouts(t *testing.T) {
	for _, layout := range []string{"guest/image", "lib/manis", "share/manis"} {
		t.Run(layout, func(t *testing.T) {
			prefix := t.TempDir()
			dirs := guestDirs(filepath.Join(prefix, "bin", "manis"))
			if _, err := guestIn(dirs); err == nil {
				t.Fatal("found a guest image where none is")
			}
			dir := filepath.Join(prefix, layout)
			check(t, os.MkdirAll(dir, 0o755))
			for _, f := range []string{"vmlinuz", "initramfs"} {
				check(t, os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o644))
			}
			g, err := guestIn(dirs)
			check(t, err)
			if g.Dir != dir {
				t.Errorf("got %s, want %s", g.Dir, dir)
			}
		})
	}
}

func TestGuestVariable(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(GuestVariable, dir)
	if _, err := FindGuest(); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v does not name the directory", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
