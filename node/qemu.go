package node

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// qemuName is the program that a node has to have, of version leastMajor.leastMinor or later.
const (
	qemuName   = "qemu-system-x86_64"
	leastMajor = 7
	leastMinor = 2
)

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)\S*`)

// qemu finds out which QEMU the node has. The error says what to do.
func (h *Host) qemu(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/env", qemuName, "--version")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if h.Root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.Root}
	}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("the node has no %s: install QEMU there (Debian and Ubuntu: qemu-system-x86, Fedora: qemu-system-x86-core): %w", qemuName, err)
	}
	found := qemuVersion.FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("the node's %s does not say its version: %.80q", qemuName, out)
	}
	major, _ := strconv.Atoi(string(found[1]))
	minor, _ := strconv.Atoi(string(found[2]))
	version := fmt.Sprintf("%d.%d", major, minor)
	if major < leastMajor || major == leastMajor && minor < leastMinor {
		return version, fmt.Errorf("the node's QEMU is %s, and %d.%d or later is needed", version, leastMajor, leastMinor)
	}
	return version, nil
}
