package background

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const action = "background-test"

// The test's own program is what is started.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == action {
		if err := Settle(); err != nil {
			os.WriteFile(os.Args[2], []byte(err.Error()), 0o600)
			os.Exit(1)
		}
		attr, err := unix.SchedGetAttr(0, 0)
		word := "ordinary " + os.Getenv("WORD")
		if err == nil && attr.Policy == unix.SCHED_IDLE {
			word = "idle " + os.Getenv("WORD")
		}
		sid, _ := unix.Getsid(0)
		if sid == os.Getpid() {
			word += " alone"
		}
		os.WriteFile(os.Args[2]+".new", []byte(word), 0o600)
		os.Rename(os.Args[2]+".new", os.Args[2])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "said")
	Start(action, file, "WORD=given")
	var got []byte
	for end := time.Now().Add(30 * time.Second); len(got) == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got, _ = os.ReadFile(file)
	}
	if want := "idle given alone"; string(got) != want {
		t.Errorf("the process says %q, want %q", got, want)
	}
}
