package jail_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"manis/vmm/jail"
)

const borrowArg = "borrow"

// borrow uses a lent file as QEMU does, and in every way in which it should not.
func borrow() {
	found := map[string]string{}
	say := func(name string, err error) {
		found[name] = "done"
		if err != nil {
			found[name] = err.Error()
		}
	}
	defer func() { json.NewEncoder(os.Stdout).Encode(found) }()
	open := func(path string, flags int) (int, error) { return unix.Open(path, flags, 0) }
	fd, err := open("/memory", unix.O_RDWR)
	say("open", err)
	if err != nil {
		return
	}
	m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	say("map privately", err)
	if err != nil {
		return
	}
	found["content"] = string(m[:5])
	copy(m, "mine!")
	_, err = unix.Write(fd, []byte("x"))
	say("write", err)
	say("truncate", unix.Ftruncate(fd, 1))
	_, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	say("map for all", err)
	say("make the other", func() error { _, err := open("/other", unix.O_RDWR); return err }())
	say("change mode", unix.Fchmod(fd, 0o666))
	say("open by magic link", func() error { _, err := open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY); return err }())
	say("open it again", func() error { _, err := open("/memory", unix.O_RDWR|unix.O_CLOEXEC); return err }())
	say("open the program", func() error { _, err := open("/program", unix.O_RDWR); return err }())
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_RDWR)
	_, err = unix.Write(fd, []byte("x"))
	say("write after fcntl", err)
}

func TestLentFileCannotBeChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	content := append([]byte("whole"), make([]byte, 8192)...)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	share := t.TempDir()
	p, r := start(t, func(c *jail.Config) {
		c.Files = append(c.Files, jail.File{Host: path, Inside: "/memory", Lent: true})
		// With shares the jail has a /proc, and root's keeps capabilities.
		c.Shares = []jail.Share{{Name: "s", Entries: []jail.Entry{{Name: "a", Host: share}}}}
	}, borrowArg)
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if status := p.Status(); status != 0 {
		t.Fatalf("ended with %x: %s", status, out)
	}
	if err := p.Release(); err != nil {
		t.Error(err)
	}
	found := map[string]string{}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	compare(t, found, map[string]string{
		"open": "done", "map privately": "done", "content": "whole",
		"write": unix.EBADF.Error(), "truncate": unix.EINVAL.Error(), "map for all": unix.EACCES.Error(),
		"make the other": unix.ENOENT.Error(), "change mode": unix.EROFS.Error(),
		"open by magic link": unix.EROFS.Error(), "open it again": unix.EROFS.Error(), "write after fcntl": unix.EBADF.Error(),
	})
	if got := found["open the program"]; got == "done" {
		t.Error("the program was opened for writing")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != string(content) {
		t.Errorf("the file has changed, or %v", err)
	}
}

// After the lending nothing is opened for reading and writing any more.
func TestLendingEnds(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, r := start(t, func(c *jail.Config) {
		c.Files = append(c.Files, jail.File{Host: self, Inside: "/memory", Lent: true})
	}, probeArg, "1")
	p.StopLending()
	p.StopLending()
	io.Copy(io.Discard, r)
	<-p.Done()
	if err := p.Release(); err != nil {
		t.Error(err)
	}
}
