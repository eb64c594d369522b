// Package kernel_test boots the built guest kernel by itself, with a probe instead of the agent,
// and checks what containers need of it and what they must not get.
package kernel_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"manis/guest/initramfs"
)

// TestKernelSuitsContainers prints the time from the start of QEMU to the first line of PID 1, and
// reports every check of guest/kernel/probe as a subtest.
func TestKernelSuitsContainers(t *testing.T) {
	vmlinuz, err := filepath.Abs("../image/vmlinuz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(vmlinuz); err != nil {
		t.Skip("no guest kernel (make kernel builds it)")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("QEMU is not installed")
	}
	work := t.TempDir()
	initrd, disk, share := filepath.Join(work, "initrd"), filepath.Join(work, "disk"), filepath.Join(work, "share")
	probe, err := os.ReadFile(compile(t, work, "probe", "amd64"))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := initramfs.Write(&archive, probe); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(share, 0o755); err != nil {
		t.Fatal(err)
	}
	compile(t, share, "probe32", "386")
	for path, content := range map[string][]byte{initrd: archive.Bytes(), disk: make([]byte, 1<<20), share + "/greeting": []byte("hello")} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	// A boot under emulation can hang on a busy host; the whole takes a few seconds.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	vm := exec.CommandContext(ctx, qemu,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,accel=tcg,usb=off,sata=off,smbus=off,graphics=off,vmport=off,i8042=off,hpet=off,smm=off",
		"-cpu", "max,la57=off,-erms,-fsrm", "-m", "256", "-smp", "2",
		"-kernel", vmlinuz, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 no_timer_check",
		"-serial", "stdio",
		"-device", "pvpanic", "-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci", "-chardev", "null,id=agent", "-device", "virtserialport,chardev=agent,name=agent",
		"-drive", "if=none,id=disk,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=disk",
		"-fsdev", "local,id=share,security_model=none,readonly=on,path="+share, "-device", "virtio-9p-pci,fsdev=share,mount_tag=share")
	var errors bytes.Buffer
	vm.Stderr = &errors
	console, err := vm.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	checks, done := 0, false
	lines := bufio.NewScanner(io.TeeReader(console, &log))
	for lines.Scan() {
		// The firmware leaves the cursor in the middle of a line.
		_, line, found := strings.Cut(strings.TrimSpace(lines.Text()), "probe: ")
		if !found {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "running":
			t.Logf("%d ms from QEMU's start to PID 1", time.Since(started).Milliseconds())
		case "done":
			done = true
		case "ok", "failed":
			checks++
			name, reason, _ := strings.Cut(rest, ": ")
			t.Run(name, func(t *testing.T) {
				if word == "failed" {
					t.Error(reason)
				}
			})
		}
	}
	if err := vm.Wait(); err != nil || !done || checks == 0 {
		t.Fatalf("the VM ended after %d checks: %v\n%s\n%s", checks, err, errors.String(), log.String())
	}
}

// compile builds a command of this directory as a static program and returns its path.
func compile(t *testing.T, dir, name, arch string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./"+name)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

var option = regexp.MustCompile(`^(CONFIG_\w+=\S.*|# CONFIG_\w+ is not set)`)

// TestEveryOptionHasAReason: an option group, up to an empty line, that nobody explained is one that nobody
// can remove.
func TestEveryOptionHasAReason(t *testing.T) {
	content, err := os.ReadFile("config")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	explained := false
	for i, line := range strings.Split(string(content), "\n") {
		switch {
		case option.MatchString(line):
			if !explained {
				t.Errorf("line %d: no comment above %s", i+1, line)
			}
			name := regexp.MustCompile(`CONFIG_\w+`).FindString(line)
			if first := seen[name]; first > 0 {
				t.Errorf("line %d: %s was already set in line %d", i+1, name, first)
			}
			seen[name] = i + 1
		case strings.HasPrefix(line, "# -----"), line == "":
			// A section's title explains the plain groups below it.
			explained = strings.HasPrefix(line, "# -----") || explained && line == ""
		case strings.HasPrefix(line, "#"):
			explained = true
		default:
			t.Errorf("line %d: neither an option nor a comment: %s", i+1, line)
		}
	}
}

// TestImageHasEveryOption compares the built kernel with the fragment, which may be newer.
func TestImageHasEveryOption(t *testing.T) {
	built, err := os.ReadFile("../image/kernel.config")
	if err != nil {
		t.Skip("no guest kernel (make kernel builds it)")
	}
	wanted, err := os.ReadFile("config")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(built)) {
		have[strings.TrimSpace(line)] = true
	}
	for line := range strings.Lines(string(wanted)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "CONFIG_") {
			continue
		}
		satisfied := false
		for _, choice := range strings.Split(line, " | ") {
			satisfied = satisfied || choice == "none" || have[choice]
		}
		if !satisfied {
			t.Error(fmt.Sprintf("the built kernel lacks %s (run make kernel)", line))
		}
	}
}
