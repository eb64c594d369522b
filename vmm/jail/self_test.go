package jail_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"manis/vmm/jail"
)

// keeperArg makes the test binary print what its threads, and a child, have of capabilities.
const keeperArg = "keeper"

func keeper() {
	files, _ := filepath.Glob("/proc/self/task/*/status")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		os.Stdout.Write(b)
	}
	out, err := exec.Command("/bin/cat", "/proc/self/status").Output()
	fmt.Printf("%s\n%v\n", out, err)
}

// What starts jails lacks capabilities that it has no need for, and so does all that comes of it; who started it has kept them.
func TestStartKeeper(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(self, keeperArg)
	cmd.Stdout, cmd.Stderr = &said, &said
	before := has(t, unix.CAP_SYSLOG)
	if err := jail.StartKeeper(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %.500s", err, said.String())
	}
	out := said.String()
	if has(t, unix.CAP_SYSLOG) != before {
		t.Error("who started it has lost capabilities")
	}
	gone := []int{unix.CAP_SYS_MODULE, unix.CAP_SYS_BOOT, unix.CAP_SYS_TIME, unix.CAP_SYS_RAWIO, unix.CAP_SYSLOG, unix.CAP_MAC_ADMIN, unix.CAP_AUDIT_CONTROL, unix.CAP_BPF}
	kept := []int{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_CHOWN, unix.CAP_SYS_PTRACE, unix.CAP_MKNOD}
	sets := 0
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if name != "CapPrm" && name != "CapEff" && name != "CapBnd" {
			continue
		}
		mask, err := strconv.ParseUint(value, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		sets++
		for _, c := range gone {
			if mask&(1<<c) != 0 && (os.Geteuid() == 0 || name != "CapBnd") {
				t.Errorf("%s is %s, with capability %d", name, value, c)
			}
		}
		for _, c := range kept {
			if os.Geteuid() == 0 && mask&(1<<c) == 0 && has(t, c) {
				t.Errorf("%s is %s, without capability %d", name, value, c)
			}
		}
	}
	if sets < 3*3 {
		t.Errorf("only %d sets were seen", sets)
	}
}

// has reports whether this process has a capability.
func has(t *testing.T, c int) bool {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		t.Fatal(err)
	}
	return caps[c/32].Permitted&(1<<(c%32)) != 0
}
