package launch

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// LandlockRule is what may be done with the files below Path, or with the file Path.
type LandlockRule struct {
	Path string
	// Access is a set of unix.LANDLOCK_ACCESS_FS_*.
	Access uint64
}

// Landlock restricts the process, and all that come of it, by a ruleset (landlock(7)): attr is the beginning of struct landlock_ruleset_attr
// that the kernel knows, flags are landlock_restrict_self(2)'s. It must come after NoNewPrivileges and Files, and the rules' paths must exist.
func (p *Program) Landlock(attr []byte, rules []LandlockRule, flags uint32) {
	set := p.slot()
	p.add("make Landlock ruleset", must, unix.SYS_LANDLOCK_CREATE_RULESET, attr, len(attr), 0).save = int8(set) + 1
	for _, r := range rules {
		// The rule is made before the number is known, so the file gets a known one.
		b := make([]byte, 12) // struct landlock_path_beneath_attr, packed: allowed_access, parent_fd
		binary.NativeEndian.PutUint64(b, r.Access)
		binary.NativeEndian.PutUint32(b[8:], listenerFD)
		f := p.Open(r.Path, unix.O_PATH, 0)
		p.add("place "+r.Path, must, unix.SYS_DUP3, f, listenerFD, unix.O_CLOEXEC)
		p.Close(f)
		p.add("rule for "+r.Path, must, unix.SYS_LANDLOCK_ADD_RULE, set, unix.LANDLOCK_RULE_PATH_BENEATH, b, 0)
		p.Call("close "+r.Path, unix.SYS_CLOSE, listenerFD)
	}
	p.add("restrict by Landlock", must, unix.SYS_LANDLOCK_RESTRICT_SELF, set, int(flags))
	p.Close(set)
}
