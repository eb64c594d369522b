package agent

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions is what fstab-like options say, sorted by whom they concern.
type mountOptions struct {
	// set and clear are MOUNT_ATTR_* of the mount itself; recursive ones hold for
	// the mounts below it as well.
	set, clear           uint64
	setBelow, clearBelow uint64
	propagation          uint64
	bind, recursive      bool
	copyUp               bool
	// subdir is a directory of the source, made if absent, to be mounted in
	// place of its root.
	subdir string
	// data is for the filesystem: "key=value" or "flag".
	data []string
}

// attributes of options: set or cleared.
var attributes = map[string]struct {
	attr uint64
	off  bool
}{
	"ro":            {unix.MOUNT_ATTR_RDONLY, false},
	"rw":            {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid":        {unix.MOUNT_ATTR_NOSUID, false},
	"suid":          {unix.MOUNT_ATTR_NOSUID, true},
	"nodev":         {unix.MOUNT_ATTR_NODEV, false},
	"dev":           {unix.MOUNT_ATTR_NODEV, true},
	"noexec":        {unix.MOUNT_ATTR_NOEXEC, false},
	"exec":          {unix.MOUNT_ATTR_NOEXEC, true},
	"nodiratime":    {unix.MOUNT_ATTR_NODIRATIME, false},
	"diratime":      {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow":   {unix.MOUNT_ATTR_NOSYMFOLLOW, false},
	"symfollow":     {unix.MOUNT_ATTR_NOSYMFOLLOW, true},
	"noatime":       {unix.MOUNT_ATTR_NOATIME, false},
	"atime":         {unix.MOUNT_ATTR_NOATIME, true},
	"strictatime":   {unix.MOUNT_ATTR_STRICTATIME, false},
	"nostrictatime": {unix.MOUNT_ATTR_STRICTATIME, true},
	"relatime":      {unix.MOUNT_ATTR_RELATIME, false},
	"norelatime":    {unix.MOUNT_ATTR_RELATIME, true},
}

var propagations = map[string]struct {
	flag      uint64
	recursive bool
}{
	"private":     {unix.MS_PRIVATE, false},
	"rprivate":    {unix.MS_PRIVATE, true},
	"shared":      {unix.MS_SHARED, false},
	"rshared":     {unix.MS_SHARED, true},
	"slave":       {unix.MS_SLAVE, false},
	"rslave":      {unix.MS_SLAVE, true},
	"unbindable":  {unix.MS_UNBINDABLE, false},
	"runbindable": {unix.MS_UNBINDABLE, true},
}

// atimes are the attributes of which one alone can be in force.
const atimes = unix.MOUNT_ATTR__ATIME

// maxMountOptions bounds what one mount asks for.
const maxMountOptions = 128

func parseMountOptions(options []string) (mountOptions, error) {
	var m mountOptions
	if len(options) > maxMountOptions {
		return m, fmt.Errorf("more than %d mount options", maxMountOptions)
	}
	for _, o := range options {
		if a, ok := attributes[o]; ok {
			m.change(&m.set, &m.clear, a.attr, a.off, isAtime(o))
			continue
		}
		if a, ok := attributes[strings.TrimPrefix(o, "r")]; ok && strings.HasPrefix(o, "r") && o != "relatime" {
			name := strings.TrimPrefix(o, "r")
			m.change(&m.setBelow, &m.clearBelow, a.attr, a.off, isAtime(name))
			continue
		}
		if p, ok := propagations[o]; ok {
			m.propagation = p.flag
			if p.recursive {
				m.propagation |= unix.MS_REC
			}
			continue
		}
		switch {
		case o == "bind":
			m.bind = true
		case o == "rbind":
			m.bind, m.recursive = true, true
		case o == "tmpcopyup":
			m.copyUp = true
		case o == "" || o == "defaults" || o == "async" || o == "nomand" || o == "mand" || o == "norelabel":
			// What is so anyway, or has no meaning left.
		case strings.HasPrefix(o, "subdir="):
			m.subdir = strings.TrimPrefix(o, "subdir=")
		default:
			m.data = append(m.data, o)
		}
	}
	return m, nil
}

func isAtime(option string) bool {
	switch option {
	case "noatime", "atime", "strictatime", "nostrictatime", "relatime", "norelatime":
		return true
	}
	return false
}

// change notes an attribute; a later option undoes an earlier one.
func (m *mountOptions) change(set, clear *uint64, attr uint64, off, atime bool) {
	if atime {
		*clear |= atimes
		*set &^= atimes
		if !off {
			*set |= attr
		}
		return
	}
	if off {
		*clear |= attr
		*set &^= attr
	} else {
		*set |= attr
		*clear &^= attr
	}
}
