package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func openVolumes(t testing.TB, root string) *Volumes {
	t.Helper()
	v, err := OpenVolumes(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func create(t testing.TB, v *Volumes, name string) VolumeInfo {
	t.Helper()
	info, err := v.Create(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func names(t testing.TB, v *Volumes) []string {
	t.Helper()
	list, err := v.List()
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, i := range list {
		all = append(all, i.Name)
	}
	return all
}

func TestVolumeLife(t *testing.T) {
	root := t.TempDir()
	v := openVolumes(t, root)
	made, err := v.Create(t.Context(), "data", map[string]string{"env": "test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(made.Mountpoint, "f"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	v = openVolumes(t, root) // as another process sees it
	got, err := v.Get("data")
	if err != nil || !reflect.DeepEqual(got, made) {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, made)
	}
	if content, err := os.ReadFile(filepath.Join(got.Mountpoint, "f")); string(content) != "kept" {
		t.Errorf("content %q, %v", content, err)
	}
	if there, err := v.Create(t.Context(), "data", nil); !errors.Is(err, ErrVolumeExists) || there.Labels["env"] != "test" {
		t.Errorf("create again: %+v, %v", there, err)
	}
	if same, err := v.Ensure(t.Context(), "data"); err != nil || !reflect.DeepEqual(same, made) {
		t.Errorf("ensure: %+v, %v", same, err)
	}
	if err := v.Remove(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Get("data"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("get after remove: %v", err)
	}
	if err := v.Remove(t.Context(), "data"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("remove twice: %v", err)
	}
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if unfinished(e) {
			t.Errorf("left over: %s", e.Name())
		}
	}
}

func TestVolumeJSONIsDockers(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	info, err := v.Create(t.Context(), "data", map[string]string{"a": "b"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(time.RFC3339, got["CreatedAt"].(string)); err != nil {
		t.Errorf("CreatedAt: %v", err)
	}
	delete(got, "CreatedAt")
	want := map[string]any{
		"Driver": "local", "Labels": map[string]any{"a": "b"}, "Mountpoint": info.Mountpoint,
		"Name": "data", "Options": nil, "Scope": "local",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestAnonymousVolume(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	info := create(t, v, "")
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(info.Name) || !info.Anonymous() {
		t.Errorf("anonymous volume %+v", info)
	}
	if create(t, v, "named").Anonymous() {
		t.Error("a named volume is anonymous")
	}
}

func TestVolumeNames(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	for _, name := range []string{"a", "0", "A.b-c_d", strings.Repeat("x", maxName)} {
		create(t, v, name)
	}
	for _, name := range []string{".", "..", "-a", "_a", "a/b", "../x", "a b", "ä", "a\n", "a\x00", strings.Repeat("x", maxName+1)} {
		if _, err := v.Create(t.Context(), name, nil); err == nil {
			t.Errorf("create %q: no error", name)
		}
		if _, err := v.Get(name); !errors.Is(err, ErrNoVolume) {
			t.Errorf("get %q: %v", name, err)
		}
		if err := v.Remove(t.Context(), name); !errors.Is(err, ErrNoVolume) {
			t.Errorf("remove %q: %v", name, err)
		}
		if _, err := v.Users(name); !errors.Is(err, ErrNoVolume) {
			t.Errorf("users of %q: %v", name, err)
		}
	}
}

func TestVolumeUsers(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	v := openVolumes(t, root)
	create(t, v, "data")
	for _, c := range []string{"c2", "c1", "c1"} {
		if err := v.AddUser(ctx, "data", c); err != nil {
			t.Fatal(err)
		}
	}
	v = openVolumes(t, root)
	err := v.Remove(ctx, "data")
	if !errors.Is(err, ErrVolumeInUse) || !strings.Contains(err.Error(), "remove volume data") || !strings.Contains(err.Error(), "[c1, c2]") {
		t.Errorf("remove in use: %v", err)
	}
	for range 2 {
		if err := v.RemoveUser(ctx, "data", "c1"); err != nil {
			t.Error(err)
		}
	}
	if users, err := v.Users("data"); err != nil || !reflect.DeepEqual(users, []string{"c2"}) {
		t.Errorf("users %v, %v", users, err)
	}
	if err := v.DropUsers(ctx, func(c string) bool { return c != "c2" }); err != nil {
		t.Error(err)
	}
	if err := v.Remove(ctx, "data"); err != nil {
		t.Error(err)
	}
	if err := v.AddUser(ctx, "data", "c1"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("use what is not there: %v", err)
	}
	if err := v.RemoveUser(ctx, "data", "c1"); err != nil {
		t.Errorf("release what is not there: %v", err)
	}
	create(t, v, "data")
	for _, c := range []string{"", ".", "../x", "a/b"} {
		if err := v.AddUser(ctx, "data", c); err == nil {
			t.Errorf("user %q: no error", c)
		}
	}
}

func TestPruneVolumes(t *testing.T) {
	ctx := t.Context()
	for _, all := range []bool{false, true} {
		t.Run(fmt.Sprint("all ", all), func(t *testing.T) {
			v := openVolumes(t, t.TempDir())
			anonymous, used := create(t, v, ""), create(t, v, "")
			create(t, v, "named")
			create(t, v, "kept")
			if err := v.AddUser(ctx, used.Name, "c"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(anonymous.Mountpoint, "f"), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			pruned, err := v.Prune(ctx, all, func(i VolumeInfo) bool { return i.Name == "kept" })
			if err != nil {
				t.Fatal(err)
			}
			want := 1
			if all {
				want = 2
			}
			if len(pruned.Names) != want || pruned.Bytes < 1<<20 {
				t.Errorf("pruned %+v", pruned)
			}
			if left := names(t, v); len(left) != 4-want {
				t.Errorf("left %v", left)
			}
		})
	}
}

func TestVolumeUsage(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	info := create(t, v, "data")
	before, err := v.Usage("data")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(info.Mountpoint, "f")
	os.WriteFile(file, make([]byte, 1<<20), 0o600)
	os.Link(file, file+"2")
	os.Symlink("/", file+"3")
	after, err := v.Usage("data")
	if err != nil || after-before < 1<<20 || after-before > 3<<19 {
		t.Errorf("1 MiB with two names and a link to / adds %d bytes, %v", after-before, err)
	}
	if _, err := v.Usage("none"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("usage of nothing: %v", err)
	}
}

func TestRemoveVolumeWithReadOnlyDirectories(t *testing.T) {
	if os.Getuid() == 0 {
		t.Log("as root nothing is read-only; this only runs the path")
	}
	v := openVolumes(t, t.TempDir())
	info := create(t, v, "data")
	dir := filepath.Join(info.Mountpoint, "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "f"), nil, 0o400)
	os.Chmod(dir, 0o500)
	os.Chmod(filepath.Dir(dir), 0o000)
	if err := v.Remove(t.Context(), "data"); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(v.root, gonePrefix+"*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestPopulate(t *testing.T) {
	ctx := t.Context()
	v := openVolumes(t, t.TempDir())
	info := create(t, v, "data")
	partial := filepath.Join(info.Mountpoint, "partial")

	p, err := v.Populate(ctx, "data")
	if err != nil || p == nil {
		t.Fatalf("a new volume: %v, %v", p, err)
	}
	if err := os.WriteFile(partial, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	busy, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	if second, err := v.Populate(busy, "data"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another one fills it: %v, %v", second, err)
	}
	cancel()
	p.Close() // interrupted

	p, err = v.Populate(ctx, "data")
	if err != nil || p == nil {
		t.Fatalf("after an interrupted copy: %v, %v", p, err)
	}
	if _, err := os.Stat(partial); !errors.Is(err, os.ErrNotExist) {
		t.Error("what an interrupted copy left is still there")
	}
	waiting := make(chan error, 1)
	go func() {
		second, err := v.Populate(ctx, "data")
		if second != nil {
			err = errors.New("populated twice")
		}
		waiting <- err
	}()
	if err := p.Done(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if p, err := openVolumes(t, v.root).Populate(ctx, "data"); p != nil || err != nil {
		t.Errorf("a populated volume: %v, %v", p, err)
	}
}

func TestPopulateLeavesForeignContentAlone(t *testing.T) {
	v := openVolumes(t, t.TempDir())
	info := create(t, v, "data")
	file := filepath.Join(info.Mountpoint, "mine")
	os.WriteFile(file, []byte("x"), 0o600)
	if p, err := v.Populate(t.Context(), "data"); p != nil || err != nil {
		t.Errorf("a volume with content: %v, %v", p, err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if _, err := v.Populate(t.Context(), "none"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("no volume: %v", err)
	}
}

// Many processes at once: openings of the store stand for them, for locks belong to open files.
func TestVolumesConcurrently(t *testing.T) {
	root := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			v := openVolumes(t, root)
			user := fmt.Sprint("c", i)
			for range 20 {
				if _, err := v.Ensure(t.Context(), "shared"); err != nil {
					t.Error(err)
					return
				}
				err := v.AddUser(t.Context(), "shared", user)
				if errors.Is(err, ErrNoVolume) {
					continue // removed by another between the two
				}
				if err != nil {
					t.Error(err)
					return
				}
				if err := v.Remove(t.Context(), "shared"); !errors.Is(err, ErrVolumeInUse) {
					t.Errorf("remove in use: %v", err)
				}
				if err := v.RemoveUser(t.Context(), "shared", user); err != nil {
					t.Error(err)
				}
				if err := v.Remove(t.Context(), "shared"); err != nil && !errors.Is(err, ErrVolumeInUse) && !errors.Is(err, ErrNoVolume) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
