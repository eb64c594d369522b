package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"manis/test/census"
)

// processes are those of this world.
func (w *world) processes() map[int]string {
	return (&census.Installation{Root: w.root, Run: w.run}).Processes()
}

// alive reports whether a process is there and no zombie.
func alive(pid int) bool { return syscall.Kill(pid, 0) == nil && !census.Zombie(pid) }

// vm returns the pids of a running container's monitor and QEMU.
func (w *world) vm(name string) (monitor, qemu int) {
	w.t.Helper()
	out := w.field(name, "{{.State.Pid}} {{.Manis.MonitorPid}}")
	if n, err := fmt.Sscan(out, &qemu, &monitor); n != 2 || qemu == 0 || monitor == 0 {
		w.t.Fatalf("pids of %s: %q, %v", name, out, err)
	}
	return monitor, qemu
}

// checkLeaks removes what the test left in order and complains about the rest.
func (w *world) checkLeaks() {
	if _, err := os.Stat(w.root); err != nil {
		return // never used
	}
	if ids := w.ok("ps", "-aq"); ids != "" {
		w.ok(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...)
	}
	w.checkClean()
}

// checkClean finds what containers that are gone have left behind.
func (w *world) checkClean() {
	w.t.Helper()
	defer func() {
		for pid, cmdline := range w.processes() {
			w.t.Errorf("left running: %d %s", pid, clip(cmdline))
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	eventually(w.t, "every process to end", func() bool { return len(w.processes()) == 0 })
	for _, dir := range []string{w.run, filepath.Join(w.run, "oci"), filepath.Join(w.run, "pods"), filepath.Join(w.root, "containers"), w.tmp} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if name := e.Name(); name != "lock" && (dir != w.run || name != "oci" && name != "pods") {
				w.t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	for _, dir := range []string{"images/tmp", "images/lease"} {
		entries, _ := os.ReadDir(filepath.Join(w.root, dir))
		for _, e := range entries {
			w.t.Errorf("left in the image store: %s", filepath.Join(dir, e.Name()))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	if bytes.Contains(mounts, []byte(w.root+"/")) || bytes.Contains(mounts, []byte(w.run)) {
		w.t.Errorf("mounts left on the host:\n%s", mounts)
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(filepath.Base(path), filepath.Base(w.dir)) {
			w.t.Errorf("control group left: %s", path)
		}
		return nil
	})
}

// files counts what is below a directory of the world: number of files and bytes on the disk.
func (w *world) files(dir string) (n int, bytes int64) {
	filepath.WalkDir(filepath.Join(w.root, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		var st syscall.Stat_t
		if syscall.Lstat(path, &st) == nil {
			n++
			bytes += st.Blocks * 512
		}
		return nil
	})
	return n, bytes
}

// residentBytes is a process's resident memory, and the most it ever was.
func residentBytes(pid int) (now, peak uint64) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		var kb uint64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kb); err == nil {
			now = kb << 10
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			peak = kb << 10
		}
	}
	return now, peak
}
