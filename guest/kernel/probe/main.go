// Command probe is the /init of the guest kernel's tests. It tries what containers need of a
// kernel and what they must not get, prints one line for each, and powers the VM off:
//
//	probe: ok NAME
//	probe: failed NAME: REASON
//	probe: done
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A check returns nil if the kernel is as it should be.
type check struct {
	name string
	try  func() error
}

func main() {
	// The moment that start-up measurements wait for: nothing comes before it.
	fmt.Println("probe: running")
	if err := mounts(); err != nil {
		fmt.Println("probe: failed mounts:", err)
	}
	for _, checks := range [][]check{devices, fileSystems, systemCalls, containers, network, absent} {
		for _, c := range checks {
			if err := c.try(); err != nil {
				fmt.Printf("probe: failed %s: %v\n", c.name, err)
			} else {
				fmt.Printf("probe: ok %s\n", c.name)
			}
		}
	}
	fmt.Println("probe: done")
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func mounts() error {
	var failed []error
	for _, m := range []struct{ source, target, kind string }{
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"devtmpfs", "/dev", "devtmpfs"},
		{"tmpfs", "/tmp", "tmpfs"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2"},
		{"securityfs", "/sys/kernel/security", "securityfs"},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", m.target, err))
		}
	}
	return errors.Join(failed...)
}

// holds checks that the words of a file, such as /proc/filesystems, contain all of these.
func holds(path string, want ...string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for word := range strings.FieldsSeq(string(content)) {
		have[word] = true
	}
	var missing []string
	for _, w := range want {
		if !have[w] {
			missing = append(missing, w)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s lacks %s", path, strings.Join(missing, " "))
	}
	return nil
}

// exists checks that all of these paths are there.
func exists(paths ...string) func() error {
	return func() error {
		for _, p := range paths {
			if _, err := os.Lstat(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// eventually repeats a check until it succeeds or ten seconds have passed.
func eventually(try func() error) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// missing checks that none of these paths is there.
func missing(paths ...string) func() error {
	return func() error {
		for _, p := range paths {
			if _, err := os.Lstat(p); err == nil {
				return fmt.Errorf("%s is there", p)
			}
		}
		return nil
	}
}

// implemented calls a system call with arguments that cannot succeed: any error but "not
// implemented" proves that the kernel has it.
func implemented(number uintptr) func() error {
	return func() error {
		if _, _, errno := unix.Syscall6(number, ^uintptr(0), 0, ^uintptr(0), 0, 0, 0); errno == unix.ENOSYS {
			return errno
		}
		return nil
	}
}

// unimplemented is its opposite.
func unimplemented(number uintptr) func() error {
	return func() error {
		if _, _, errno := unix.Syscall6(number, ^uintptr(0), 0, 0, 0, 0, 0); errno != unix.ENOSYS {
			return fmt.Errorf("answers %v, want %v", errno, unix.ENOSYS)
		}
		return nil
	}
}
