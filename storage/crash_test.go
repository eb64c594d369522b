package storage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A crash test runs a child that does one thing over and over, and kills it at some moment.
const crashChild = "MANIS_TEST_CRASH_CHILD"

var crashWork = map[string]func(dir string) error{
	"blank":    crashBlank,
	"volumes":  crashVolumes,
	"populate": crashPopulate,
}

func TestMain(m *testing.M) {
	if work := os.Getenv(crashChild); work != "" {
		fmt.Println("begun")
		for {
			if err := crashWork[work](os.Args[1]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
	os.Exit(m.Run())
}

// killed runs the child in dir, kills it after it has worked for a while, and says what it printed to stderr.
func killed(t *testing.T, work, dir string, after time.Duration) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe, dir)
	child.Env = append(os.Environ(), crashChild+"="+work)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Errorf("the child did not begin: %v", err)
	}
	time.Sleep(after) // where in its work the child is, is left to chance
	child.Process.Kill()
	if err := child.Wait(); child.ProcessState.ExitCode() != -1 {
		t.Fatalf("the child failed before it was killed: %v", err)
	}
}

const rounds = 12

func crashBlank(dir string) error {
	b := NewBlanks(filepath.Join(dir, "cache"))
	old, _ := filepath.Glob(filepath.Join(dir, "cache", "ext4-*"))
	for _, p := range old {
		os.Remove(p)
	}
	disk := filepath.Join(dir, "disk")
	os.Remove(disk)
	return b.Clone(context.Background(), MinScratchSize, disk)
}

func TestKilledWhileMakingBlanks(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	for i := range rounds {
		killed(t, "blank", dir, time.Duration(i)*3*time.Millisecond)
		// A disk that has its name is whole, whenever the child was killed.
		disk := filepath.Join(dir, "disk")
		if _, err := os.Stat(disk); err == nil {
			fsck(t, disk)
			os.Remove(disk)
		}
		if err := NewBlanks(filepath.Join(dir, "cache")).Clone(t.Context(), MinScratchSize, disk); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		fsck(t, disk)
	}
	if err := crashBlank(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "cache", "new-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func crashVolumes(dir string) error {
	ctx := context.Background()
	v, err := OpenVolumes(ctx, dir)
	if err != nil {
		return err
	}
	for i := range 4 {
		name := fmt.Sprint("v", i)
		info, err := v.Ensure(ctx, name)
		if err != nil {
			return err
		}
		os.WriteFile(filepath.Join(info.Mountpoint, "f"), []byte("content"), 0o600)
		if err := v.AddUser(ctx, name, "c"); err != nil {
			return err
		}
		if err := v.RemoveUser(ctx, name, "c"); err != nil {
			return err
		}
		if i%2 == 0 {
			if err := v.Remove(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestKilledWhileChangingVolumes(t *testing.T) {
	dir := t.TempDir()
	for i := range rounds {
		killed(t, "volumes", dir, time.Duration(i)*2*time.Millisecond)
		v := openVolumes(t, dir)
		list, err := v.List()
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		for _, info := range list {
			if _, err := os.Stat(info.Mountpoint); err != nil {
				t.Errorf("round %d: volume without content directory: %v", i, err)
			}
			if _, err := v.Users(info.Name); err != nil {
				t.Errorf("round %d: %v", i, err)
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if unfinished(e) {
				t.Errorf("round %d: %s is left over after the store was opened", i, e.Name())
			}
		}
		// And all goes on.
		if err := v.DropUsers(t.Context(), func(string) bool { return false }); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Prune(t.Context(), true, nil); err != nil {
			t.Fatal(err)
		}
	}
}

const populateFiles = 20

func crashPopulate(dir string) error {
	ctx := context.Background()
	v, err := OpenVolumes(ctx, dir)
	if err != nil {
		return err
	}
	info, err := v.Ensure(ctx, "data")
	if err != nil {
		return err
	}
	p, err := v.Populate(ctx, "data")
	if err != nil {
		return err
	}
	if p == nil {
		if err := v.Remove(ctx, "data"); err != nil {
			return err
		}
		return nil
	}
	for i := range populateFiles {
		if err := os.WriteFile(filepath.Join(info.Mountpoint, fmt.Sprint(i)), []byte("x"), 0o600); err != nil {
			return err
		}
	}
	return p.Done()
}

func TestKilledWhilePopulating(t *testing.T) {
	dir := t.TempDir()
	for i := range rounds {
		killed(t, "populate", dir, time.Duration(i)*time.Millisecond)
		v := openVolumes(t, dir)
		info, err := v.Get("data")
		if errors.Is(err, ErrNoVolume) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := v.Populate(t.Context(), "data")
		if err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(info.Mountpoint)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case p == nil && len(files) != populateFiles:
			t.Errorf("round %d: the volume counts as populated with %d of %d files", i, len(files), populateFiles)
		case p != nil && len(files) != 0:
			t.Errorf("round %d: a copy would begin over %d files of an interrupted one", i, len(files))
		}
		if p != nil {
			p.Close()
		}
	}
}
