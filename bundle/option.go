package bundle

import (
	"fmt"
	"strings"
)

// mountOptions is what the options of a mount say.
type mountOptions struct {
	bind, recursive bool
	// readonly says that nothing may be written, readonlyBelow the same for all mounts below, of what counts last.
	readonly, readonlyBelow bool
	// maps asks for mapped ids, mapsBelow for the mounts below, too.
	maps, mapsBelow bool
	// copyUp fills a tmpfs with what it covers; propagates is the last option by which mounts
	// would appear outside or come in from there.
	copyUp     bool
	propagates string
	// mount are for the mount itself, data for its filesystem.
	mount, data []string
}

// optionKinds are the options of the runtime-spec's table ("Linux mount options") and those
// that runc knows besides.
var optionKinds = func() map[string]byte {
	kinds := make(map[string]byte)
	for kind, names := range map[byte]string{
		// Of the mount; for most there is a form with r that holds for those below too.
		'm': `ro rw nosuid suid nodev dev noexec exec nodiratime diratime noatime atime relatime norelatime
			strictatime nostrictatime nosymfollow symfollow
			rro rrw rnosuid rsuid rnodev rdev rnoexec rexec rnodiratime rdiratime rnoatime ratime rrelatime
			rnorelatime rstrictatime rnostrictatime rnosymfollow rsymfollow
			private rprivate slave rslave shared rshared unbindable runbindable tmpcopyup`,
		// Of a filesystem that is made.
		'd': `sync dirsync lazytime nolazytime`,
		// What is so anyway or has no meaning left.
		'-': `defaults async mand nomand acl noacl iversion noiversion silent loud norelabel newinstance`,
		'b': `bind rbind`,
		// Refused.
		'x': `remount idmap ridmap`,
	} {
		for name := range strings.FieldsSeq(names) {
			kinds[name] = kind
		}
	}
	return kinds
}()

// options sorts them.
func (p *planner) options(list []string) (mountOptions, error) {
	var o mountOptions
	if len(list) > maxOptions {
		return o, fmt.Errorf("options: has %d entries, at most %d are possible", len(list), maxOptions)
	}
	for i, name := range list {
		switch optionKinds[name] {
		case 'm':
			o.mount = append(o.mount, name)
			switch name {
			case "ro":
				o.readonly = true
			case "rro":
				o.readonly, o.readonlyBelow = true, true
			case "rw":
				o.readonly = false
			case "rrw":
				o.readonly, o.readonlyBelow = false, false
			case "tmpcopyup":
				o.copyUp = true
			case "shared", "rshared", "slave", "rslave":
				o.propagates = name
			}
		case 'd':
			o.data = append(o.data, name)
		case 'b':
			o.bind = true
			o.recursive = o.recursive || name == "rbind"
		case '-':
		case 'x':
			if name == "remount" {
				return o, fmt.Errorf("options[%d]: remount: there is nothing before a container's mounts to be mounted again", i)
			}
			if p.maps {
				o.maps, o.mapsBelow = true, o.mapsBelow || name == "ridmap"
				continue
			}
			return o, fmt.Errorf("options[%d]: %s: filesystems that cross the boundary of a virtual machine cannot be mounted with mapped ids", i, name)
		default:
			key, _, _ := strings.Cut(name, "=")
			switch key {
			case "":
			case "context", "fscontext", "defcontext", "rootcontext":
				p.warn("mounts: option %s: SELinux labels belong to the host; in the virtual machine nothing is labelled", key)
			case "subdir":
				// The agent's own.
				return o, fmt.Errorf("options[%d]: %q is not a mount option", i, name)
			default:
				o.data = append(o.data, name)
			}
		}
	}
	return o, nil
}

// maxOptions is less than the agent's bound, which counts those that are added here.
const maxOptions = 120
