package spec

import (
	"fmt"
	"slices"
	"strings"

	"manis/container"
)

// namespaced are the kernel parameters that belong to the container's IPC namespace.
// With net.* and fs.mqueue.* they are those that docker lets a container set.
var namespaced = strings.Fields(`
	kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax
	kernel.shmmni kernel.shm_rmid_forced`)

// defaultSysctls let processes without capabilities use low ports and ping, as
// docker's do. The network is the container's own.
var defaultSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

func sysctls(cfg *container.Config) (map[string]string, error) {
	all := make(map[string]string)
	for key, value := range defaultSysctls {
		all[key] = value
	}
	for given, value := range cfg.Sysctls {
		key, err := sysctlName(given)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(namespaced, key) && !strings.HasPrefix(key, "net.") && !strings.HasPrefix(key, "fs.mqueue.") {
			return nil, fmt.Errorf("sysctl %q is not in a separate kernel namespace: a container may set kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.* and net.*", given)
		}
		if value == "" || strings.IndexByte(value, 0) >= 0 || len(value) > 4096 {
			return nil, fmt.Errorf("sysctl %s=%.40q: this is no value", given, value)
		}
		all[key] = value
	}
	return all, nil
}

// sysctlName reads a name with dots or with slashes, as sysctl(8) does: the first
// separator decides which it is, and the other then stands for a dot in a
// part, such as an interface's name.
func sysctlName(s string) (string, error) {
	first := strings.IndexAny(s, "./")
	if first < 0 {
		return "", fmt.Errorf("sysctl %q is not a name", s)
	}
	name := s
	if s[first] == '/' {
		name = strings.NewReplacer("/", ".", ".", "/").Replace(s)
	}
	for part := range strings.SplitSeq(name, ".") {
		// A slash stands for a dot here: "/" and "//" would become "." and "..".
		if strings.Trim(part, "/") == "" || strings.ContainsAny(part, "\x00 \t\n") {
			return "", fmt.Errorf("sysctl %q is not a name", s)
		}
	}
	return name, nil
}
