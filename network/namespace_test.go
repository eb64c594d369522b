package network

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

const namespaceEnv = "MANIS_TEST_NETWORK_NAMESPACE"

// inNamespace runs the test again in a process with a network namespace of its own, in which it may make any
// address and device, and reports true there. Where it reports false, the test has been done.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceEnv) == t.Name() {
		ip(t, "link", "set", "lo", "up")
		return true
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2: ", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe, "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	child.Env = append(os.Environ(), namespaceEnv+"="+t.Name())
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	if err := child.Start(); err != nil {
		t.Skip("no user and network namespace to be had here: ", err)
	}
	err = child.Wait()
	switch {
	case err != nil:
		t.Fatalf("in a network namespace: %v\n%s", err, out.Bytes())
	case bytes.Contains(out.Bytes(), []byte("--- SKIP")):
		t.Skipf("in a network namespace:\n%s", out.Bytes())
	}
	return false
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
}

// addAddress gives the namespace an address of its own. The kernel gets to the local route of an IPv6 address
// only some time after the command.
func addAddress(t *testing.T, address string) {
	t.Helper()
	a := netip.MustParseAddr(address)
	if a.Is4() {
		ip(t, "addr", "add", address+"/32", "dev", "lo")
		return
	}
	ip(t, "addr", "add", address+"/128", "dev", "lo", "nodad")
	for deadline := time.Now().Add(patience); ; {
		out, err := exec.Command("ip", "-6", "route", "get", address).CombinedOutput()
		if err == nil && bytes.HasPrefix(out, []byte("local")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not become local: %v\n%s", address, err, out)
		}
	}
}
