// Package node installs Manis on a node of Kubernetes, whose root filesystem it is shown somewhere, and takes it away again.
//
// What is installed lies below a prefix of its own, each version in a directory that is complete before it has its name:
//
//	PREFIX/versions/VERSION-DIGEST/{bin,lib}    as make install lays it out
//	PREFIX/current                              a link to one of them
//
// containerd's drop-in names the shim by way of that link. So an upgrade is one rename: pods that run go on with the
// programs that they were started from, whose directory stays for as long as a process is executed from it, and containerd is
// restarted only when it does not know the handler, or its drop-in has changed.
//
// It knows nothing of pods and machines. Of Kubernetes it knows two objects: its own DaemonSet and its own node.
package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is a node. All paths but Root are absolute ones of the node's own.
type Host struct {
	// Root is where the node's root filesystem is mounted, "/" on the node itself.
	Root string
	// Prefix is the directory that Manis has for itself.
	Prefix string
	// Config is containerd's configuration, DropIn the file of it that is ours, and Socket where containerd answers.
	Config, DropIn, Socket string
	// Handler is the runtime's name in containerd's configuration.
	Handler string
	// Restart is the command, executed in Root, that restarts containerd.
	Restart []string
	// Log is told in words what is done.
	Log func(format string, args ...any)
}

// Default is a node as kubeadm makes it.
func Default() Host {
	return Host{
		Root: "/", Prefix: "/opt/manis", Config: "/etc/containerd/config.toml", DropIn: "/etc/containerd/conf.d/manis.toml",
		Socket: "/run/containerd/containerd.sock", Handler: "manis", Restart: []string{"systemctl", "restart", "containerd"},
	}
}

var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// check refuses what would end up somewhere else, or as something else in a configuration file.
func (h *Host) check() error {
	for name, path := range map[string]string{"--prefix": h.Prefix, "--containerd-config": h.Config, "--drop-in": h.DropIn, "--containerd-socket": h.Socket, "--host-root": h.Root} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsAny(path, "'\"\\\n*?[") {
			return fmt.Errorf("%s %q: give an absolute path without .., quotes and wildcards", name, path)
		}
	}
	switch {
	case h.Prefix == "/":
		return errors.New("--prefix /: Manis needs a directory of its own")
	case !handlerName.MatchString(h.Handler):
		return fmt.Errorf("--handler %q: give lower-case letters, digits and hyphens", h.Handler)
	case filepath.Ext(h.DropIn) != ".toml":
		return fmt.Errorf("--drop-in %s: the name has to end in .toml", h.DropIn)
	}
	return nil
}

// inside is a path of the node's as one of this process's.
func (h *Host) inside(path string) string { return filepath.Join(h.Root, path) }

// rel is a path of the node's as package os.Root wants it.
func rel(path string) string { return strings.TrimPrefix(path, "/") }

// open opens the node's root. Links that lead out of it are not followed.
func (h *Host) open() (*os.Root, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(h.Root)
	if err != nil {
		return nil, fmt.Errorf("open the node's root: %w", err)
	}
	return root, nil
}

// lockName is the file in Prefix on which whoever changes something there holds a lock.
const lockName = ".lock"

// lock makes the prefix, and keeps others out of it until the file is closed.
func (h *Host) lock(root *os.Root) (*os.File, error) {
	if err := root.MkdirAll(rel(h.Prefix), 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", h.Prefix, err)
	}
	f, err := root.OpenFile(rel(h.Prefix)+"/"+lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", h.Prefix, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: another one installs or removes Manis here: %w", h.Prefix, err)
	}
	return f, nil
}
