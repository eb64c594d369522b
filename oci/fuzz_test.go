package oci

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A hook is what a configuration says: it runs if it is a program with an absolute path, and ends within its time, or it is an
// error. Only programs of the test are executed.
func FuzzHook(f *testing.F) {
	programs := f.TempDir()
	for name, script := range map[string]string{
		"good": "cat >/dev/null", "bad": "echo no >&2; exit 3", "hangs": "sleep 100", "loud": "head -c 100000 /dev/zero", "leaves": "sleep 3 &",
	} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(programs, "plain"), []byte("text"), 0o644); err != nil {
		f.Fatal(err)
	}
	for _, path := range []string{"good", "bad", "hangs", "loud", "leaves", "plain", "", ".", "..", "../..", "good/x", "no\x00ne", strings.Repeat("x/", 3000), "sh", "/"} {
		f.Add(path, true, "arg", "A=b", 1)
	}
	f.Add("true", false, "", "", 1)
	f.Add("good", true, "a\x00b", "=\x00", -1)
	f.Add("bad", true, "", "\xff", 0)
	f.Fuzz(func(t *testing.T, path string, inside bool, arg, env string, timeout int) {
		if inside {
			path = programs + "/" + path
		}
		if filepath.IsAbs(path) {
			if at, err := filepath.EvalSymlinks(path); err == nil && !strings.HasPrefix(at, programs) {
				t.Skip("a program of the host's")
			}
		}
		timeout = min(timeout, 1)
		h := specs.Hook{Path: path, Args: []string{"hook", arg}, Env: []string{env}, Timeout: &timeout}
		began := time.Now()
		err := runHooks(context.Background(), "prestart", []specs.Hook{h}, &specs.State{ID: "fuzz"}, 0)
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%q took %v", path, took)
		}
		if err == nil && (!filepath.IsAbs(path) || timeout <= 0) {
			t.Errorf("%q ran, with a timeout of %d s", path, timeout)
		}
		if err != nil && len(err.Error()) > maxHookOutput+3*len(path)+1000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

// Whatever is at the path of a console socket, the terminal is sent or it is an error, and no descriptor is left.
func FuzzConsoleSocket(f *testing.F) {
	for kind := range byte(6) {
		f.Add("socket", kind)
	}
	for _, name := range []string{"", ".", "no\x00ne", "@", strings.Repeat("x", 200), "\xff"} {
		f.Add(name, byte(1))
	}
	f.Fuzz(func(t *testing.T, name string, kind byte) {
		dir, err := os.MkdirTemp("", "c")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := dir + "/" + name
		if !strings.HasPrefix(filepath.Clean(path), dir) || strings.Contains(name, "/") {
			t.Skip("it leads elsewhere")
		}
		master, slave, err := openTerminal(nil)
		if err != nil {
			t.Skip(err)
		}
		defer master.Close()
		defer slave.Close()
		there := func() net.Listener {
			l, err := net.Listen("unix", path)
			if err != nil {
				return nil
			}
			t.Cleanup(func() { l.Close() })
			return l
		}
		works := false
		switch kind % 6 {
		case 0: // nothing is there
		case 1:
			os.WriteFile(path, nil, 0o600)
		case 2:
			unix.Mkfifo(path, 0o600)
		case 3: // who listens hangs up at once
			if l := there(); l != nil {
				go func() {
					if conn, err := l.Accept(); err == nil {
						conn.Close()
					}
				}()
			}
		case 4: // nobody takes the call
			there()
		case 5:
			if l := there(); l != nil {
				works = true
				go func() {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					defer conn.Close()
					conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 64), nil) // the descriptor is dropped
				}()
			}
		}
		before := openFiles(t)
		err = sendTerminal(context.Background(), path, master)
		if works && err != nil {
			t.Errorf("a socket that is well: %v", err)
		}
		if kind%6 < 3 && err == nil {
			t.Errorf("sent to what is no socket: %q", path)
		}
		if kind%6 < 3 && openFiles(t) > before {
			t.Error("a descriptor was left open")
		}
		if _, err := master.Stat(); err != nil {
			t.Errorf("the terminal: %v", err)
		}
	})
}
