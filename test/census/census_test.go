package census

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever is left of an installation is found, and nothing is where nothing was left.
func TestWhatIsLeftIsFound(t *testing.T) {
	// holder runs a program of the installation's that holds something, until the test ends.
	holder := func(t *testing.T, i *Installation, files ...*os.File) *exec.Cmd {
		t.Helper()
		cmd := exec.Command("cat")
		cmd.Env = []string{"MANIS_ROOT=" + i.Root}
		cmd.ExtraFiles = files
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		return cmd
	}
	for name, leave := range map[string]struct {
		finds string // the kind
		leave func(t *testing.T, i *Installation)
	}{
		"nothing": {"", func(*testing.T, *Installation) {}},
		"a process": {"process cat", func(t *testing.T, i *Installation) {
			holder(t, i)
		}},
		"a process without its environment": {"process cat", func(t *testing.T, i *Installation) {
			f, err := os.Open(filepath.Join(i.Root, "kept"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			holder(t, &Installation{Root: "/elsewhere"}, f)
		}},
		"a file": {"file root/containers/#/config", func(t *testing.T, i *Installation) {
			dir := filepath.Join(i.Root, "containers", "0123456789abcdef")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			os.WriteFile(filepath.Join(dir, "config"), nil, 0o644)
		}},
		"a temporary file": {"file tmp/manis-vm-#", func(t *testing.T, i *Installation) {
			os.WriteFile(filepath.Join(i.Further[0], "manis-vm-123"), nil, 0o644)
		}},
		"a socket whose file is gone": {"socket run/control", func(t *testing.T, i *Installation) {
			path := filepath.Join(i.Run, "control")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			os.Remove(path)
		}},
		"a memory file": {"memory file ram", func(t *testing.T, i *Installation) {
			fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), "ram")
			defer f.Close()
			holder(t, i, f)
		}},
		"a descriptor of the daemon": {"descriptor of the daemon /dev/null", func(t *testing.T, i *Installation) {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			i.Daemon = holder(t, i, f, f).Process.Pid
		}},
		"a mount": {"mount run/#", func(t *testing.T, i *Installation) {
			dir := filepath.Join(i.Run, "12")
			os.Mkdir(dir, 0o755)
			if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { unix.Unmount(dir, 0) })
		}},
		"a control group": {"control group", func(t *testing.T, i *Installation) {
			dir := filepath.Join("/sys/fs/cgroup/pids", i.Names[0])
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { os.Remove(dir) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			i := &Installation{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Further: []string{filepath.Join(dir, "tmp")}, Names: []string{"census-" + filepath.Base(filepath.Dir(dir))}}
			for _, d := range []string{i.Root, i.Run, i.Further[0]} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			os.WriteFile(filepath.Join(i.Root, "kept"), nil, 0o644)
			before := i.Take()
			leave.leave(t, i)
			more := i.Take().More(before)
			if leave.finds == "" && len(more) > 0 || !strings.Contains("\n"+strings.Join(more, "\n"), "\n"+leave.finds) {
				t.Errorf("found %q, want %q", more, leave.finds)
			}
			if again := i.Take().More(i.Take()); len(again) > 0 {
				t.Errorf("at rest: %q", again)
			}
		})
	}
}

// What is there instead of another of its kind is no more than before.
func TestExchangedThingsAreNotMore(t *testing.T) {
	before, after := make(Census), make(Census)
	before.add("process", "qemu", "12 qemu")
	after.add("process", "qemu", "34 qemu")
	if more := after.More(before); len(more) != 0 {
		t.Error(more)
	}
	after.add("process", "qemu", "56 qemu")
	if more := after.More(before); len(more) != 1 || more[0] != "process qemu: 2, was 1: 34 qemu, 56 qemu" {
		t.Error(more)
	}
	if more := before.More(after); len(more) != 0 {
		t.Errorf("fewer than before: %v", more)
	}
}

func TestKinds(t *testing.T) {
	for command, want := range map[string]string{
		"": "", "manis standby {\"ID\":\"\"}": "manis standby", "manis monitor 0123456789ab": "manis monitor",
		"/usr/bin/qemu-system-x86_64 -name x": "qemu-system-x#_#", "/x/manisd -n 2": "manisd", "sh": "sh",
	} {
		if got := shortened(command); got != want {
			t.Errorf("%q is %q, want %q", command, got, want)
		}
	}
}
