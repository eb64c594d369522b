// Package jailtest runs a test's own program in a jail, for tests of what is possible there. TestMain, or an init function, has to
// recognise the arguments.
package jailtest

import (
	"errors"
	"io"
	"os"
	"testing"

	"manis/vmm/jail"
)

// Start runs the test binary in a jail, with what it writes to its standard output and error on a pipe. The configuration can be
// changed before. A host that gives ordinary users no jail skips the test.
func Start(t testing.TB, change func(*jail.Config), args ...string) (*jail.Process, *os.File) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	closure, err := jail.FindClosure(self, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	c := jail.Config{Closure: closure, Args: args, Dir: t.TempDir(), Name: t.Name(), Descriptors: []*os.File{null, w, w}}
	if change != nil {
		change(&c)
	}
	p, err := jail.Start(c)
	null.Close()
	w.Close()
	if err != nil {
		if os.Geteuid() != 0 && errors.Is(err, jail.ErrUnsupported) {
			t.Skip("this host has no user namespaces for ordinary users: ", err)
		}
		t.Fatal(err)
	}
	return p, r
}

// Output is all that a process which Start has started writes, once it has ended. One that ends otherwise than with status 0 fails the test.
func Output(t testing.TB, p *jail.Process, r io.Reader) []byte {
	t.Helper()
	out, err := io.ReadAll(r)
	status := p.Status()
	if e := p.Release(); e != nil {
		t.Error(e)
	}
	if err != nil || status != 0 {
		t.Fatalf("the prisoner ended with %x, %v: %.300s", status, err, out)
	}
	return out
}
