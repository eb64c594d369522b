package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPoolFollows keeps a program in manisd's place on this machine: it is started again when it ends, gives way to that of the release in use, and
// ends with the pool.
func TestPoolFollows(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can enter the namespaces of the first process")
	}
	prefix := t.TempDir()
	words := filepath.Join(prefix, "words")
	for _, name := range []string{"one", "two"} {
		program := filepath.Join(prefix, "versions", name, "bin", "manisd")
		if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\ntrap 'echo %[1]s ends >>%[2]s; exit 0' TERM\necho %[1]s $* >>%[2]s\nwhile [ ! -f %[3]s ]; do sleep 0.05; done\nrm %[3]s; exit 3\n",
			name, words, filepath.Join(prefix, "die"))
		if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	use := func(name string) {
		t.Helper()
		link := filepath.Join(prefix, "next")
		if err := os.Symlink("versions/"+name, link); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link, filepath.Join(prefix, "current")); err != nil {
			t.Fatal(err)
		}
	}
	await := func(want string) {
		t.Helper()
		var got []byte
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if got, _ = os.ReadFile(words); string(got) == want {
				return
			}
		}
		t.Fatalf("said: %q, want %q", got, want)
	}
	h := Default()
	h.Prefix, h.Log = prefix, t.Logf
	p := Pool{Host: h, Args: []string{"-n", "1"}, Every: 50 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(cancel)
	use("one")
	await("one -n 1\n")
	if err := os.WriteFile(filepath.Join(prefix, "die"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await("one -n 1\none -n 1\n")
	use("two")
	await("one -n 1\none -n 1\none ends\ntwo -n 1\n")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	await(strings.Join([]string{"one -n 1", "one -n 1", "one ends", "two -n 1", "two ends", ""}, "\n"))
}

// TestPoolWithoutNode has a pool say what is missing, where there is no first process to see.
func TestPoolWithoutNode(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "opt/manis/versions/one"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("versions/one", filepath.Join(root, "opt/manis/current")); err != nil {
		t.Fatal(err)
	}
	h := Default()
	said := make(chan string, 100)
	h.Root, h.Log = root, func(format string, args ...any) { said <- fmt.Sprintf(format, args...) }
	p := Pool{Host: h, Every: 10 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	if words := <-said; !strings.Contains(words, "node's namespaces") && !strings.Contains(words, "working directory") {
		t.Errorf("said: %s", words)
	}
	cancel()
	for {
		select {
		case <-said:
			continue
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}
