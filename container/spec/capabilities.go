package spec

import (
	"fmt"
	"slices"
	"strings"

	"manis/api/agent"
	"manis/container"
)

// allCapabilities are those of <linux/capability.h> up to Linux 6.1, in order.
var allCapabilities = strings.Fields(`
	CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID
	CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST
	CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO
	CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE
	CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE
	CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM
	CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)

// defaultCapabilities are the fourteen that docker leaves to a container.
var defaultCapabilities = strings.Fields(`
	CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID
	CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL
	CAP_AUDIT_WRITE`)

// Capabilities are the names of all that the guest's kernel has, by their numbers.
func Capabilities() []string { return slices.Clone(allCapabilities) }

// capabilities is the bounding set, in the kernel's order. What is both added
// and dropped by name is added. Adding ALL leaves out what is dropped by name, and
// dropping ALL leaves what is added by name.
func capabilities(s *container.Security, privileged bool) ([]string, error) {
	add, addAll, err := capabilityNames(s.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capabilityNames(s.CapDrop)
	if err != nil {
		return nil, err
	}
	switch {
	case privileged:
		return allCapabilities, nil
	case addAll:
		return ordered(func(c string) bool { return !slices.Contains(drop, c) }), nil
	case dropAll:
		return ordered(func(c string) bool { return slices.Contains(add, c) }), nil
	}
	return ordered(func(c string) bool {
		return slices.Contains(add, c) || slices.Contains(defaultCapabilities, c) && !slices.Contains(drop, c)
	}), nil
}

func ordered(keep func(string) bool) []string {
	var list []string
	for _, c := range allCapabilities {
		if keep(c) {
			list = append(list, c)
		}
	}
	return list
}

// capabilityNames brings names into the form CAP_NET_ADMIN.
func capabilityNames(list []string) (names []string, all bool, err error) {
	for _, s := range list {
		name := strings.ToUpper(s)
		if name == "ALL" || name == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if !slices.Contains(allCapabilities, name) {
			return nil, false, fmt.Errorf("invalid capability: %q", s)
		}
		names = append(names, name)
	}
	return names, all, nil
}

// sets gives root the bounding set as its own. Others get none: what they
// execute with a set-user-ID bit or file capabilities can still get them. The host
// cannot look a user's name up. It need not: root under another name has its
// capabilities after execve by the kernel's rules, and whoever else is called
// root loses them there.
func sets(bounding []string, user string) *agent.Capabilities {
	c := &agent.Capabilities{Bounding: bounding}
	name, _, _ := strings.Cut(user, ":")
	if name == "" || name == "root" || strings.Trim(name, "0") == "" {
		c.Effective, c.Permitted = bounding, bounding
	}
	return c
}
