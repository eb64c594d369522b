package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"manis/vmm"
	"manis/vmm/jail"
)

// binary is the program's name for this architecture.
const binary = "qemu-system-x86_64"

// firmwareDir is where firmware appears inside the jail.
const firmwareDir = "/firmware"

// firmware are the files that the machine reads besides the program; those with
// true are in every installation that can boot a Linux kernel.
var firmware = map[string]bool{
	"bios-256k.bin":     true,
	"kvmvapic.bin":      true,
	"linuxboot_dma.bin": true,
	"pvh.bin":           false,
	"qboot.rom":         false,
}

// Installation is a QEMU on this host, with the files that it needs in a jail.
type Installation struct {
	Closure *jail.Closure
	// Firmware maps the names in the jail's firmware directory to host files.
	Firmware map[string]string
}

// bios is the firmware's name. qboot does what a Linux guest needs and no
// more; SeaBIOS takes 0.1 s longer under TCG and is everywhere.
func (in *Installation) bios() string {
	if in.Firmware["qboot.rom"] != "" {
		return "qboot.rom"
	}
	return "bios-256k.bin"
}

// firmwareDirs are the directories to look for firmware in.
func (in *Installation) firmwareDirs(unjailed bool) []string {
	if !unjailed {
		return []string{firmwareDir}
	}
	var dirs []string
	for _, path := range in.Firmware {
		dirs = append(dirs, filepath.Dir(path))
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// FindInstallation looks for QEMU at path, or in PATH and the usual places when it is
// empty. Errors wrap vmm.ErrNoMonitor and say what to install.
func FindInstallation(path string) (*Installation, error) { return find(path, new(memory)) }

func find(path string, known *memory) (*Installation, error) {
	fail := func(format string, args ...any) (*Installation, error) {
		return nil, fmt.Errorf("%w: %w", vmm.ErrNoMonitor, fmt.Errorf(format, args...))
	}
	if path == "" {
		found, err := lookUp()
		if err != nil {
			return fail("%w (install the package qemu-system-x86)", err)
		}
		path = found
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fail("%w (install the package qemu-system-x86)", err)
	}
	prefix := filepath.Dir(filepath.Dir(real))
	in := &Installation{Firmware: map[string]string{}}
	var loads []string
	for _, dir := range []string{
		prefix + "/lib/x86_64-linux-gnu/qemu", prefix + "/lib64/qemu", prefix + "/lib/qemu",
		prefix + "/lib64/qemu-kvm", prefix + "/lib/qemu-kvm",
	} {
		// Distributions may build TCG as a module, at a path that QEMU derives from its own.
		module := dir + "/accel-tcg-x86_64.so"
		if _, err := os.Stat(module); err == nil {
			loads = append(loads, module)
			break
		}
	}
	for name, needed := range firmware {
		for _, dir := range []string{prefix + "/share/qemu", prefix + "/share/seabios", prefix + "/share/qemu-kvm",
			"/usr/share/qemu", "/usr/share/seabios", "/usr/share/seabios-bin"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				in.Firmware[name] = filepath.Join(dir, name)
				break
			}
		}
		if needed && in.Firmware[name] == "" {
			return fail("firmware %s of %s is not installed (install the packages qemu-system-data and seabios)", name, real)
		}
	}
	if in.Closure, err = known.closure(real, loads); err != nil {
		return fail("%w", err)
	}
	return in, nil
}

func lookUp() (string, error) {
	path, err := exec.LookPath(binary)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/bin", "/usr/local/bin", "/usr/libexec"} {
		if path, err := exec.LookPath(filepath.Join(dir, binary)); err == nil {
			return path, nil
		}
	}
	if path, err := exec.LookPath("/usr/libexec/qemu-kvm"); err == nil {
		return path, nil
	}
	return "", errors.New(binary + " not found")
}
