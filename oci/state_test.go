package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStore(t *testing.T) {
	s := &store{filepath.Join(t.TempDir(), "root")}
	if list, err := s.all(); err != nil || len(list) != 0 {
		t.Errorf("no root: %v, %v", list, err)
	}
	if _, err := s.load("x"); !errors.Is(err, errNotExist) {
		t.Errorf("load: %v", err)
	}
	if err := s.claim("x"); err != nil {
		t.Fatal(err)
	}
	if err := s.claim("x"); !errors.Is(err, errExist) {
		t.Errorf("claimed twice: %v", err)
	}
	st := &state{ID: "x", Bundle: "/b", Pod: "/p", PID: os.Getpid(), Created: time.Now().UTC().Round(0)}
	var err error
	if st.Birth, err = birthOf(st.PID); err != nil {
		t.Fatal(err)
	}
	if err := s.save(st); err != nil {
		t.Fatal(err)
	}
	got, err := s.load("x")
	if err != nil || got.Bundle != "/b" || !got.Created.Equal(st.Created) || !got.alive() {
		t.Errorf("%+v, %v", got, err)
	}
	got.Birth++
	if got.alive() {
		t.Error("a process that began at another time is taken for the container's")
	}
	// What is no container is not listed.
	os.Mkdir(filepath.Join(s.root, "junk"), 0o700)
	if err := s.claim("bad"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"id":"other","pod":"/p"}`, `{"id":"bad","pod":"relative"}`, `{"id":"bad","pod":"/p","pid":-1}`} {
		if err := os.WriteFile(s.file("bad"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.load("bad"); err == nil || !strings.Contains(err.Error(), "delete --force") {
			t.Errorf("%q: %v, want an error that says what to do", text, err)
		}
	}
	os.Remove(s.file("bad"))
	if err := os.Symlink(s.file("x"), s.file("bad")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load("bad"); err == nil {
		t.Error("a symbolic link was followed")
	}
	if list, err := s.all(); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	if err := s.remove("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load("x"); !errors.Is(err, errNotExist) {
		t.Errorf("after remove: %v", err)
	}
}

func FuzzState(f *testing.F) {
	b, _ := json.Marshal(&state{ID: "x", Pod: "/p", PID: 1})
	f.Add(b)
	f.Add([]byte(`{"id":"x","pod":"/p","hooks":{"prestart":[{"path":"/a","timeout":-1}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseState(b, "x")
		if err == nil && (st.ID != "x" || st.PID < 0 || !filepath.IsAbs(st.Pod)) {
			t.Errorf("%q was taken: %+v", b, st)
		}
	})
}
