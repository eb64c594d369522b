package bundle

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// namespaced are the kernel parameters of IPC and UTS namespaces; those of the network and
// of message queues are known by how they begin (namespaces(7)).
var namespaced = strings.Fields(`
	kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni
	kernel.shm_rmid_forced kernel.domainname`)

// sysctls takes the parameters of the container's namespaces. Others are refused, as by runc:
// they would change all containers of a sandbox.
func (p *planner) sysctls() error {
	for _, key := range slices.Sorted(maps.Keys(p.linux.Sysctl)) {
		name := key
		if first := strings.IndexAny(key, "./"); first >= 0 && key[first] == '/' {
			// As for sysctl(8): with slashes between the parts, a dot is one of a part.
			name = strings.NewReplacer("/", ".", ".", "/").Replace(key)
		}
		for part := range strings.SplitSeq(name, ".") {
			if strings.Trim(part, "/") == "" || strings.ContainsAny(part, "\x00 \t\n") {
				return fmt.Errorf("linux.sysctl: %.80q is not the name of a kernel parameter", key)
			}
		}
		if !slices.Contains(namespaced, name) && !strings.HasPrefix(name, "net.") && !strings.HasPrefix(name, "fs.mqueue.") {
			return fmt.Errorf("linux.sysctl: %s does not belong to a namespace, so it cannot be set for one container", key)
		}
		value := p.linux.Sysctl[key]
		if value == "" || len(value) > 4096 || strings.IndexByte(value, 0) >= 0 {
			return fmt.Errorf("linux.sysctl.%s: %.40q is no value", key, value)
		}
	}
	p.Create.Sysctls = p.linux.Sysctl
	return nil
}
