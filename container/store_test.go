package container_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"manis/container"
)

func open(t *testing.T) *container.Store {
	t.Helper()
	dir := t.TempDir()
	s, err := container.Open(filepath.Join(dir, "c"), filepath.Join(dir, "r"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *container.Store, id, name string) *container.Container {
	t.Helper()
	c, err := s.Create(&container.Config{ID: id, Name: name, Created: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	idA = "aaaa000000000000000000000000000000000000000000000000000000000000"
	idB = "aabb000000000000000000000000000000000000000000000000000000000000"
)

func TestGet(t *testing.T) {
	s := open(t)
	create(t, s, idA, "web")
	create(t, s, idB, "aaaa") // a name that is the beginning of another's id
	for ref, want := range map[string]struct {
		id  string
		err error
	}{
		"web":        {idA, nil},
		"/web":       {idA, nil},
		idA:          {idA, nil},
		"aaaa":       {idB, nil}, // names win
		"aaaa0":      {idA, nil},
		"aa":         {"", container.ErrAmbiguous},
		"none":       {"", container.ErrNotFound},
		"":           {"", container.ErrNotFound},
		"../escape":  {"", container.ErrNotFound},
		idA[:63]:     {idA, nil},
		idA + "0000": {"", container.ErrNotFound},
	} {
		c, err := s.Get(ref)
		if !errors.Is(err, want.err) || err == nil && c.ID != want.id {
			t.Errorf("Get(%q) = %v, %v; want %s, %v", ref, c, err, want.id, want.err)
		}
	}
}

func TestNames(t *testing.T) {
	s := open(t)
	create(t, s, "", "web")
	for name, want := range map[string]error{
		"web":    container.ErrNameInUse,
		"":       container.ErrName,
		"-x":     container.ErrName,
		"a/b":    container.ErrName,
		"a b":    container.ErrName,
		"Web.2_": nil,
	} {
		if _, err := s.Create(&container.Config{Name: name}); !errors.Is(err, want) {
			t.Errorf("create %q: %v, want %v", name, err, want)
		}
	}
}

func TestOneOfManyGetsTheName(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	won := make(chan string, 20)
	for range 20 {
		wg.Go(func() {
			if c, err := s.Create(&container.Config{Name: "one"}); err == nil {
				won <- c.ID
			} else if !errors.Is(err, container.ErrNameInUse) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d containers got the name", len(won))
	}
}

func TestStateWithoutMonitorIsDead(t *testing.T) {
	s := open(t)
	c := create(t, s, "", "web")
	lock, err := c.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetState(&container.State{Status: container.Running, VMPID: 7, StartedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if st, err := c.State(); err != nil || st.Status != container.Running {
		t.Fatalf("state with a monitor: %+v, %v", st, err)
	}
	if _, err := c.Lock(); !errors.Is(err, container.ErrRunning) {
		t.Errorf("second lock: %v", err)
	}
	lock.Close()
	st, err := c.State()
	if err != nil || st.Status != container.Dead || st.ExitCode != 137 || st.Error == "" || st.VMPID != 0 {
		t.Errorf("state without a monitor: %+v, %v", st, err)
	}
}

// A copy keeps everybody else away and tells them why, but does not make the container look
// as if it ran.
func TestLockForCopy(t *testing.T) {
	s := open(t)
	c := create(t, s, "", "web")
	if err := c.SetState(&container.State{Status: container.Running}); err != nil {
		t.Fatal(err)
	}
	lock, err := c.LockForCopy()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lock(); !errors.Is(err, container.ErrBusy) {
		t.Errorf("lock during a copy: %v", err)
	}
	if _, err := c.LockForCopy(); !errors.Is(err, container.ErrBusy) {
		t.Errorf("a second copy: %v", err)
	}
	if c.Monitored() || !c.Held() || !c.BeingCopied() {
		t.Errorf("monitored %v, held %v, being copied %v", c.Monitored(), c.Held(), c.BeingCopied())
	}
	if st, err := c.State(); err != nil || st.Status != container.Dead {
		t.Errorf("state of a dead container during a copy: %+v, %v", st, err)
	}
	released := make(chan error)
	go func() { released <- c.AwaitRelease(t.Context()) }()
	lock.Close()
	if err := <-released; err != nil {
		t.Error(err)
	}
	if lock, err = c.Lock(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.LockForCopy(); !errors.Is(err, container.ErrRunning) {
		t.Errorf("a copy while it runs: %v", err)
	}
	if !c.Monitored() || !c.Held() || c.BeingCopied() {
		t.Errorf("monitored %v, held %v, being copied %v", c.Monitored(), c.Held(), c.BeingCopied())
	}
	lock.Close()
}

// However many look whether a container is monitored, or wait for its end, a lock that is free
// is had.
func TestWhoLooksIsInNobodysWay(t *testing.T) {
	s := open(t)
	c := create(t, s, "", "web")
	stop := make(chan struct{})
	var lookers sync.WaitGroup
	for i := range 8 {
		lookers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if i%2 == 0 {
					c.Monitored()
				} else if err := c.AwaitRelease(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 500 {
		lock, err := c.Lock()
		if err != nil {
			t.Error(err)
			break
		}
		if !c.Monitored() {
			t.Error("not monitored while it is locked")
		}
		lock.Close()
	}
	close(stop)
	lookers.Wait()
}

func TestAwaitRelease(t *testing.T) {
	s := open(t)
	c := create(t, s, "", "web")
	lock, err := c.Lock()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.AwaitRelease(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was given up: %v", err)
	}
	done := make(chan error)
	go func() { done <- c.AwaitRelease(t.Context()) }()
	if err := c.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("a wait that a removal ends: %v", err)
	}
	if err := c.AwaitRelease(t.Context()); err != nil {
		t.Errorf("a wait for what is gone: %v", err)
	}
}

func TestRemoveTwice(t *testing.T) {
	s := open(t)
	c := create(t, s, "", "web")
	lock, err := c.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lock(); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("lock of a removed container: %v", err)
	}
	if _, err := c.State(); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("state of a removed container: %v", err)
	}
	create(t, s, "", "web") // the name is free again
}

func TestSweepRemovesHalves(t *testing.T) {
	s := open(t)
	c := create(t, s, "", "web")
	dir := filepath.Dir(c.Dir())
	for _, half := range []string{".new-123", ".gone-" + idA} {
		if err := os.MkdirAll(filepath.Join(dir, half, "log"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 { // the container and the lock
		t.Errorf("left: %v", entries)
	}
	if _, err := s.Get("web"); err != nil {
		t.Error(err)
	}
}
