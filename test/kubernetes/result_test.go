package kubernetes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// resultVariable names a directory for what long forms have found, which is kept in results.
const resultVariable = "MANIS_KUBERNETES_RESULTS"

// record keeps what was found, below what it was found on.
func record(t testing.TB, name string, lines []string) {
	t.Helper()
	for _, line := range lines {
		t.Log(line)
	}
	to := os.Getenv(resultVariable)
	if to == "" {
		return
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, name+".txt"), []byte(strings.Join(append(host(), lines...), "\n")+"\n"), 0o644); err != nil {
		t.Error(err)
	}
}

// host is what a result was found on.
func host() []string {
	var name unix.Utsname
	unix.Uname(&name)
	var memory unix.Sysinfo_t
	unix.Sysinfo(&memory)
	load, _ := os.ReadFile("/proc/loadavg")
	first := func(command string, args ...string) string {
		out, _ := exec.Command(command, args...).Output()
		line, _, _ := strings.Cut(string(out), "\n")
		return line
	}
	return []string{
		"# " + time.Now().UTC().Format("2006-01-02 15:04") + " UTC, Kubernetes " + version + ", " + first("runc", "--version") + ", " + first("qemu-system-x86_64", "--version"),
		fmt.Sprintf("# Linux %s, %d processors, %d MiB, load %s", unix.ByteSliceToString(name.Release[:]), runtime.NumCPU(), memory.Totalram*uint64(memory.Unit)>>20, strings.Join(strings.Fields(string(load))[:3], " ")),
	}
}

// spread is the median of durations with the least and the most, in milliseconds.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "none"
	}
	list := slices.Sorted(slices.Values(all))
	return fmt.Sprintf("%d ms (%d to %d)", list[len(list)/2].Milliseconds(), list[0].Milliseconds(), list[len(list)-1].Milliseconds())
}
