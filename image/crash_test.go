package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets this binary play a process that dies.
func TestMain(m *testing.M) {
	if root := os.Getenv("MANIS_TEST_STORE"); root != "" {
		life(root, os.Getenv("MANIS_TEST_REF"))
		return
	}
	os.Exit(m.Run())
}

// life pulls, converts, names and removes, and kills itself at the event of
// progress that it was told.
func life(root, ref string) {
	left, err := strconv.Atoi(os.Getenv("MANIS_TEST_EVENTS"))
	must(err)
	progress := func(Event) {
		if left--; left == 0 {
			must(syscall.Kill(os.Getpid(), syscall.SIGKILL))
		}
	}
	s, err := Open(root)
	must(err)
	opts := quick
	opts.Progress = progress
	img, err := s.Pull(context.Background(), ref, opts)
	must(err)
	_, release, err := s.Rootfs(context.Background(), img, progress)
	must(err)
	progress(Event{})
	must(s.Tag(img.ID, "again"))
	progress(Event{})
	release()
	_, err = s.Remove("again", false)
	must(err)
	progress(Event{})
	_, err = s.Remove(ref, false)
	must(err)
	progress(Event{})
	_, err = s.Pull(context.Background(), ref, opts)
	must(err)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestKilledAtAnyMoment kills a process after each of its steps in turn, with
// the same store, and checks what the next one finds.
func TestKilledAtAnyMoment(t *testing.T) {
	host := registryServer(t, nil)
	ref := host + "/a:1"
	push(t, ref, imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(700_000, 1)})), layerOf(t, tarOf(t, testFile{name: "g", body: noise(400_000, 2)}))))
	for _, fresh := range []bool{true, false} {
		t.Run(fmt.Sprintf("fresh=%v", fresh), func(t *testing.T) {
			root := t.TempDir()
			kills := 0
			for n := 1; ; n++ {
				if fresh {
					root = t.TempDir()
				}
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), "MANIS_TEST_STORE="+root, "MANIS_TEST_REF="+ref, fmt.Sprintf("MANIS_TEST_EVENTS=%d", n))
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
					kills++
				} else if err != nil {
					t.Fatalf("event %d: %v: %s", n, err, out)
				}
				s, openErr := Open(root)
				if openErr != nil {
					t.Fatalf("event %d: %v", n, openErr)
				}
				if entries, _ := os.ReadDir(s.path("tmp")); len(entries) != 0 {
					t.Errorf("event %d: tmp holds %v", n, entries)
				}
				list, listErr := s.List()
				if listErr != nil {
					t.Fatalf("event %d: %v", n, listErr)
				}
				for _, img := range list {
					whole(t, s, img)
				}
				if err == nil {
					break
				}
				if n > 500 {
					t.Fatal("never comes to its end")
				}
			}
			if kills < 10 {
				t.Errorf("only %d kills", kills)
			}
			s, err := Open(root)
			if err != nil {
				t.Fatal(err)
			}
			img, err := s.Pull(t.Context(), ref, quick)
			if err != nil {
				t.Fatal(err)
			}
			whole(t, s, img)
			if _, err := s.Prune(true); err != nil {
				t.Fatal(err)
			}
			untouched(t, s, false)
		})
	}
}

// TestKilledWhileDownloading kills a process in the middle of a layer and
// counts what the next one fetches.
func TestKilledWhileDownloading(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	ref := host + "/a:1"
	img := imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(3<<20, 1)})))
	push(t, ref, img)
	layer := layersOf(t, img)[0]
	half := make(chan struct{})
	c.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, layer.Digest.Hex) {
			return false
		}
		rc, err := mustLayer(t, img, layer.Digest).Compressed()
		if err != nil {
			t.Error(err)
			return true
		}
		defer rc.Close()
		w.Header().Set("Content-Length", strconv.FormatInt(layer.Size, 10))
		io.CopyN(w, rc, layer.Size/2)
		http.NewResponseController(w).Flush()
		close(half)
		<-r.Context().Done() // until the process is dead
		return true
	}
	root := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MANIS_TEST_STORE="+root, "MANIS_TEST_REF="+ref, "MANIS_TEST_EVENTS=1000000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-half
	partial := filepath.Join(root, "partial", layer.Digest.Hex)
	waitFor(t, "half of the layer on disk", func() bool {
		fi, err := os.Stat(partial)
		return err == nil && fi.Size() == layer.Size/2
	})
	cmd.Process.Kill()
	cmd.Wait()
	c.mu.Lock()
	c.before, c.gets, c.bytes = nil, nil, 0
	c.mu.Unlock()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Pull(t.Context(), ref, quick)
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s, got)
	if want := fmt.Sprintf("%s from %d", layer.Digest.Hex, layer.Size/2); len(c.asked(layer.Digest)) != 1 || c.asked(layer.Digest)[0] != want {
		t.Errorf("asked %q, want %q", c.asked(layer.Digest), want)
	}
	if sent := c.sent(); sent > layer.Size/2+10_000 {
		t.Errorf("%d bytes fetched after the kill, %d were missing", sent, layer.Size/2)
	}
}

// TestFullDisk works on a file system of a few megabytes.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	root := t.TempDir()
	if err := unix.Mount("none", root, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	grow := func(size string) {
		if err := unix.Mount("none", root, "tmpfs", unix.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	c := &traffic{}
	host := registryServer(t, c.wrap)
	img := imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(5<<20, 1)})))
	push(t, host+"/a:1", img)
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	s.Limits.FreeReserve = 1 // run into the end of the disk itself
	_, err = s.Pull(t.Context(), host+"/a:1", quick)
	if !errors.Is(err, ErrNoSpace) || !strings.HasPrefix(err.Error(), "pull "+host+"/a:1: ") || len(c.gets) > 2 {
		t.Errorf("pull: %v, after %d requests", err, len(c.gets))
	}
	untouched(t, s, true)

	// What did arrive is of use once there is room.
	grow("9m")
	got, err := s.Pull(t.Context(), host+"/a:1", quick)
	if err != nil {
		t.Fatal(err)
	}
	asked := c.asked(got.Manifest.Layers[0].Digest)
	_, from, _ := strings.Cut(asked[len(asked)-1], " from ")
	if at, err := strconv.Atoi(from); err != nil || at < 1<<20 {
		t.Errorf("the layer was asked for as %q, want from where the disk was full", asked)
	}
	if _, _, err := s.Rootfs(t.Context(), got, nil); !errors.Is(err, ErrNoSpace) {
		t.Errorf("rootfs: %v", err)
	}
	tidy(t, s)
	if _, err := s.LoadFrom(t.Context(), strings.NewReader(string(oldDocker(t, imageOf(t, layerOf(t, tarOf(t, testFile{name: "g", body: noise(6<<20, 2)}))), "b:1"))), LoadOptions{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("load: %v", err)
	}
	tidy2(t, s)
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("%d images (%v)", len(list), err)
	}
	grow("40m")
	whole(t, s, got)
	// Removing must work when nothing can be written but a catalog.
	if _, err := s.Remove(host+"/a:1", false); err != nil {
		t.Errorf("remove: %v", err)
	}
}
