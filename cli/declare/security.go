package declare

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"manis/container"
	"manis/seccomp"
)

// capabilities are the kernel's, without CAP_.
var capabilities = strings.Fields(`
	AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN
	DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE
	LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE
	NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN
	SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO
	SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM`)

// Capabilities are the names that --cap-add and --cap-drop know.
func Capabilities() []string { return append([]string{"ALL"}, capabilities...) }

func checkCapability(s string) error { _, err := capability(s); return err }

// capability brings a name into the form NET_ADMIN.
func capability(s string) (string, error) {
	name := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(s)), "CAP_")
	if name != "ALL" && !slices.Contains(capabilities, name) {
		return "", fmt.Errorf("invalid capability: %q", s)
	}
	return name, nil
}

func normalCapabilities(list []string) ([]string, error) {
	var names []string
	for _, s := range list {
		name, err := capability(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (f *Flags) setSecurity(c *container.Config, _ *Image, _ []string, _ Host) error {
	s := &c.Security
	s.Privileged = f.privileged
	var err error
	if s.CapAdd, err = normalCapabilities(f.capAdd); err != nil {
		return err
	}
	if s.CapDrop, err = normalCapabilities(f.capDrop); err != nil {
		return err
	}
	for _, opt := range f.security {
		if err := securityOption(s, opt); err != nil {
			return err
		}
	}
	return nil
}

func securityOption(s *container.Security, opt string) error {
	key, value, ok := strings.Cut(opt, "=")
	if !ok {
		key, value, ok = strings.Cut(opt, ":")
	}
	if !ok && key != "no-new-privileges" {
		return fmt.Errorf("invalid --security-opt: %q", opt)
	}
	switch key {
	case "no-new-privileges":
		s.NoNewPrivileges = true
		if ok {
			var err error
			if s.NoNewPrivileges, err = strconv.ParseBool(value); err != nil {
				return fmt.Errorf("invalid --security-opt: %q: expected true or false", opt)
			}
		}
	case "seccomp":
		return seccompOption(s, value)
	case "systempaths":
		if value != "unconfined" {
			return fmt.Errorf("invalid --security-opt: %q: the only value is unconfined", opt)
		}
		s.UnmaskPaths = []string{"ALL"}
	case "mask":
		paths, err := optionPaths(value)
		if err != nil {
			return fmt.Errorf("invalid --security-opt: %q: %w", opt, err)
		}
		s.MaskPaths = append(s.MaskPaths, paths...)
	case "unmask":
		if strings.EqualFold(value, "all") {
			s.UnmaskPaths = []string{"ALL"}
			return nil
		}
		paths, err := optionPaths(value)
		if err != nil {
			return fmt.Errorf("invalid --security-opt: %q: %w", opt, err)
		}
		s.UnmaskPaths = append(s.UnmaskPaths, paths...)
	case "apparmor", "label":
		// No security module confines within the VM; Unheeded says so.
	case "writable-cgroups":
		return fmt.Errorf("invalid --security-opt: %q: cgroups are writable with --privileged only", opt)
	default:
		return fmt.Errorf("invalid --security-opt: %q", opt)
	}
	return nil
}

// Unheeded lists what was accepted for docker's sake and has no effect here, a
// sentence each.
func (f *Flags) Unheeded() []string {
	var notes []string
	for _, opt := range f.security {
		key, _, _ := strings.Cut(strings.Replace(opt, ":", "=", 1), "=")
		if key == "apparmor" || key == "label" {
			notes = append(notes, fmt.Sprintf("--security-opt %s has no effect: the guest kernel has no such module, and the host is protected by the virtual machine", opt))
		}
	}
	if f.swap != 0 {
		notes = append(notes, "--memory-swap has no effect: virtual machines have no swap")
	}
	if f.logDriver == "local" {
		notes = append(notes, "--log-driver local: logs are kept as json-file")
	}
	return notes
}

// maxProfileBytes bounds a seccomp profile.
const maxProfileBytes = 4 << 20

func seccompOption(s *container.Security, value string) error {
	switch value {
	case "unconfined":
		s.Seccomp = value
		return nil
	case "default", "builtin":
		s.Seccomp = ""
		return nil
	}
	fi, err := os.Stat(value)
	if err != nil {
		return fmt.Errorf("opening seccomp profile (%s) failed: %w", value, err)
	}
	if fi.Size() > maxProfileBytes {
		return fmt.Errorf("opening seccomp profile (%s) failed: it is larger than %d bytes", value, maxProfileBytes)
	}
	text, err := os.ReadFile(value)
	if err != nil {
		return fmt.Errorf("opening seccomp profile (%s) failed: %w", value, err)
	}
	if _, err := seccomp.Parse(text); err != nil {
		return fmt.Errorf("seccomp profile %s: %w", value, err)
	}
	s.Seccomp = string(text)
	return nil
}

func optionPaths(value string) ([]string, error) {
	paths := strings.Split(value, ":")
	for i, p := range paths {
		if !path.IsAbs(p) {
			return nil, fmt.Errorf("%q is not an absolute path", p)
		}
		paths[i] = path.Clean(p)
	}
	return paths, nil
}
