package terminal

import (
	"errors"
	"io"
	"os"
	"testing"
)

func TestInputReadsToTheEnd(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, err := NewInput(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	w.WriteString("hello")
	w.Close()
	if got, err := io.ReadAll(in); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestInputCancels(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	in, err := NewInput(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	done := make(chan error, 1)
	go func() {
		_, err := in.Read(make([]byte, 10))
		done <- err
	}()
	in.Cancel()
	if err := <-done; !errors.Is(err, ErrCancelled) {
		t.Errorf("got %v", err)
	}
	if _, err := in.Read(make([]byte, 10)); !errors.Is(err, ErrCancelled) {
		t.Errorf("second read: %v", err)
	}
}
