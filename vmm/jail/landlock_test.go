package jail_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"manis/vmm/jail"
)

// executeArg makes the prisoner execute a file of the jail that is not its program; saidArg is what that says.
const (
	executeArg = "execute-another"
	saidArg    = "say-so"
)

func executeAnother() {
	fmt.Print(unix.Exec("/other", []string{"x", saidArg}, nil))
}

// Of what only Landlock forbids: a file in the jail that is not its program cannot be executed.
func TestLandlock(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	// Another file with the same content: rules are about files, not about names.
	other := t.TempDir() + "/other"
	if err := os.WriteFile(other, self, 0o755); err != nil {
		t.Fatal(err)
	}
	p, r := start(t, func(c *jail.Config) { c.Files = []jail.File{{Host: other, Inside: "/other"}} }, executeArg)
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	p.Status()
	if err := p.Release(); err != nil {
		t.Error(err)
	}
	var abi uintptr
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		if string(out) != "executed" {
			t.Errorf("without Landlock: %q", out)
		}
		t.Skip("this kernel has no Landlock: ", errno)
	}
	if string(out) != unix.EACCES.Error() {
		t.Errorf("Landlock's version is %d, and executing another file says %q", abi, out)
	}
	v := waiting(t, nil)
	facts, err := v.Verify()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range facts {
		if f.Name == "Landlock" && !f.InForce {
			t.Error("it is said not to be in force: ", f.Detail)
		}
	}
}

// What a file server does with files works under it: to move them between directories first of all.
func TestLandlockLetsServersServe(t *testing.T) {
	host := t.TempDir()
	if err := errors.Join(os.Mkdir(host+"/a", 0o755), os.Mkdir(host+"/b", 0o755), os.WriteFile(host+"/a/file", []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	p, r := start(t, func(c *jail.Config) {
		c.Shares = []jail.Share{{Name: "s", Entries: []jail.Entry{{Name: "e", Host: host}}}}
	}, moveArg)
	out, err := io.ReadAll(r)
	p.Status()
	if err := errors.Join(err, p.Release()); err != nil {
		t.Fatal(err)
	}
	if string(out) != "" {
		t.Errorf("the prisoner says %s", out)
	}
	if b, err := os.ReadFile(host + "/b/moved"); err != nil || string(b) != "" {
		t.Errorf("the moved and truncated file holds %q, %v", b, err)
	}
}

const moveArg = "move-a-file"

func moveFile() {
	dir := "/shares/s/e"
	if err := errors.Join(
		os.Rename(dir+"/a/file", dir+"/b/moved"), os.Link(dir+"/b/moved", dir+"/a/link"), os.Truncate(dir+"/b/moved", 0),
		os.Symlink("x", dir+"/a/symlink"), os.Mkdir(dir+"/a/dir", 0o755), os.Rename(dir+"/a/dir", dir+"/b/dir"), os.Remove(dir+"/b/dir"),
		unix.Mkfifo(dir+"/a/fifo", 0o644), os.Remove(dir+"/a/fifo"),
	); err != nil {
		fmt.Print(err)
	}
}
