package oci

import (
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// namespaceFiles are the names of namespaces in /proc/PID/ns.
var namespaceFiles = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.PIDNamespace: "pid",
}

// joins says whose namespaces a container has.
type joins struct {
	pod string // the directory of the pod that all of them are in; empty: a pod of its own
	// with are the containers, by the namespaces that have a path, except for the network.
	with map[specs.LinuxNamespaceType]string
}

// findJoins looks up whose the namespaces are that a configuration gives paths of. Containers
// that share any are in one machine: a virtual machine has one network, and none of its namespaces can
// be shared with the host or another machine.
func (a *app) findJoins(namespaces map[specs.LinuxNamespaceType]string) (*joins, error) {
	j := &joins{with: make(map[specs.LinuxNamespaceType]string)}
	var states []*state
	for kind, path := range namespaces {
		if path == "" {
			continue
		}
		file, ok := namespaceFiles[kind]
		if !ok {
			return nil, fmt.Errorf("config.json: linux.namespaces: a %s namespace of the host cannot be joined from a virtual machine", kind)
		}
		want, err := identityOf(path)
		if err != nil {
			return nil, fmt.Errorf("config.json: linux.namespaces: join the %s namespace: %w", kind, err)
		}
		if states == nil {
			if states, err = a.store.all(); err != nil {
				return nil, err
			}
		}
		var found *state
		for _, st := range states {
			if !st.alive() {
				continue
			}
			if got, err := identityOf(fmt.Sprintf("/proc/%d/ns/%s", st.PID, file)); err == nil && got == want {
				found = st
				break
			}
		}
		switch {
		case found == nil && kind == specs.NetworkNamespace:
			continue // an engine has made it for this container
		case found == nil:
			return nil, fmt.Errorf("config.json: linux.namespaces: the %s namespace %s belongs to no running container of this runtime, and a virtual machine cannot have the host's", kind, path)
		case j.pod != "" && j.pod != found.Pod:
			return nil, fmt.Errorf("config.json: linux.namespaces: the namespaces belong to containers of different virtual machines, %s is one", found.ID)
		}
		j.pod = found.Pod
		if kind != specs.NetworkNamespace {
			j.with[kind] = found.ID
		}
	}
	return j, nil
}

// identity tells namespaces from each other.
type identity struct{ dev, ino uint64 }

func identityOf(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return identity{st.Dev, st.Ino}, nil
}
