package pool

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestThisHost(t *testing.T) {
	h := ThisHost{}
	total, err := h.Total()
	check(t, err)
	available, err := h.Available()
	check(t, err)
	if total < 64<<20 || available == 0 || available > total {
		t.Errorf("%d of %d bytes are available", available, total)
	}
	if got, err := h.Pressure(); err != nil && !os.IsNotExist(err) || got < 0 || got > 100 {
		t.Errorf("pressure %v, %v", got, err)
	}
}

func TestPressureIsRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := (ThisHost{dir}).Pressure(); err == nil {
		t.Error("no error where the kernel says nothing")
	}
	check(t, os.Mkdir(filepath.Join(dir, "pressure"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "pressure", "cpu"), []byte("some avg10=42.50 avg60=3.15 avg300=13.19 total=8995253778\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"), 0o644))
	if got, err := (ThisHost{dir}).Pressure(); err != nil || got != 42.5 {
		t.Errorf("%v, %v", got, err)
	}
}

// Memory counts a process and its descendants.
func TestMemoryOfAProcessAndItsChildren(t *testing.T) {
	me := os.Getpid()
	h := ThisHost{}
	before := h.Memory([]int{me})[0]
	size := 60 << 20
	// A child with a child that holds a value of this size.
	cmd := exec.Command("sh", "-c", "sh -c 'x=$(head -c "+strconv.Itoa(size)+" /dev/zero | tr \"\\000\" x); echo ready; read y; echo ${#x}'; true")
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	b := make([]byte, 6)
	if _, err := out.Read(b); err != nil || !bytes.HasPrefix(b, []byte("ready")) {
		t.Fatalf("%q, %v", b, err)
	}
	got := h.Memory([]int{me, cmd.Process.Pid, 1 << 22})
	in.Close()
	cmd.Wait()
	if got[1] < uint64(size) || got[0] < before+uint64(size)/2 || got[2] != 0 {
		t.Errorf("this process %d, then %d, the child %d, no process %d", before, got[0], got[1], got[2])
	}
	if self, err := os.ReadFile("/proc/self/smaps_rollup"); err == nil && !strings.Contains(string(self), "Pss:") {
		t.Error("no Pss")
	}
}
