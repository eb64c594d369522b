package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// What inspect says of QEMU's jail is what the host's kernel says of the process.
func TestJailInForce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sleep", "1000")
	_, qemu := w.vm("c")
	checkJail(t, w, qemu, noCapabilities)
	t.Run("inspect", func(t *testing.T) {
		var facts []struct {
			Name    string `json:"name"`
			InForce bool   `json:"in_force"`
			Detail  string `json:"detail"`
		}
		if err := json.Unmarshal([]byte(w.in(t).field("c", "{{json .Manis.Jail}}")), &facts); err != nil || len(facts) < 6 {
			t.Fatalf("%v, %v", facts, err)
		}
		for _, f := range facts {
			if !f.InForce {
				t.Logf("not in force on this host: %s: %s", f.Name, f.Detail)
			}
			if f.Name == "" || f.Detail == "" {
				t.Errorf("a fact that says nothing: %+v", f)
			}
		}
		if got := w.in(t).field("c", "{{.Manis.VM.accel}} {{.Manis.VM.pid}}"); !strings.HasSuffix(got, fmt.Sprint(" ", qemu)) {
			t.Errorf("the machine is %s, QEMU is %d", got, qemu)
		}
	})
	t.Run("with host directories", func(t *testing.T) {
		w := w.in(t)
		w.up("--name", "shares", "-v", w.dir+":/host:ro", "box", "sleep", "1000")
		_, qemu := w.vm("shares")
		ambient := noCapabilities
		if os.Getuid() == 0 {
			// Root's QEMU serves files of every owner: CAP_DAC_READ_SEARCH, over
			// nothing but the read-only directory.
			ambient = "0000000000000004"
		}
		checkJail(t, w, qemu, ambient)
	})
}

const noCapabilities = "0000000000000000"

// checkJail looks at a QEMU from outside.
func checkJail(t *testing.T, w *world, qemu int, ambient string) {
	t.Helper()
	status := make(map[string]string)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", qemu))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	for key, want := range map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapAmb": ambient} {
		if status[key] != want {
			t.Errorf("QEMU has %s %s, want %s", key, status[key], want)
		}
	}
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		theirs, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", qemu, ns))
		ours, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err1 != nil || err2 != nil {
			t.Logf("namespace %s cannot be looked at: %v", ns, err1)
			continue
		}
		if theirs == ours {
			t.Errorf("QEMU shares the %s namespace", ns)
		}
	}
	// What its root holds.
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", qemu))
	if err != nil {
		t.Logf("its root cannot be looked at: %v", err)
		return
	}
	for _, e := range entries {
		switch e.Name() {
		case "etc", "home", "root", "var", "tmp", "sys", "run":
			t.Errorf("QEMU's root holds %s", e.Name())
		}
	}
}
