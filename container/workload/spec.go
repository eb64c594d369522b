package workload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/container"
)

// FromSpec is the container that containerd's configuration asks for, in a pod of this host name. The resolver is what the node has to
// say about name servers, in the form that a manifest permits.
func FromSpec(s *specs.Spec, hostname string) (c *Container, resolver []byte, err error) {
	p := s.Process
	if p == nil {
		return nil, nil, errors.New("config.json: process: is missing")
	}
	c = &Container{Config: container.Config{
		Hostname: hostname, TTY: p.Terminal,
		Process:  container.Process{Args: p.Args, Env: p.Env, Dir: p.Cwd, User: fmt.Sprintf("%d:%d", p.User.UID, p.User.GID)},
		Security: container.Security{NoNewPrivileges: p.NoNewPrivileges, CapDrop: []string{"ALL"}},
		ReadOnly: s.Root != nil && s.Root.Readonly,
	}}
	if p.Capabilities != nil {
		c.Config.Security.CapAdd = p.Capabilities.Bounding
	}
	if s.Linux != nil && s.Linux.Resources != nil {
		r := s.Linux.Resources
		if m := r.Memory; m != nil && m.Limit != nil && *m.Limit > 0 {
			c.Config.Resources.MemoryBytes = uint64(*m.Limit)
		}
		if cpu := r.CPU; cpu != nil && cpu.Quota != nil && cpu.Period != nil {
			c.Config.Resources.MilliCPUs = milliCPUs(*cpu.Quota, *cpu.Period)
		}
	}
	if s.Linux != nil {
		for _, d := range s.Linux.Devices {
			return nil, nil, fmt.Errorf("device %s: a container of the class confidential has no devices", d.Path)
		}
	}
	for _, m := range s.Mounts {
		if m.Type != "bind" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			continue // the guest's own kernel's; which ones there are, the manifest says
		}
		if err := c.bind(m, &resolver); err != nil {
			return nil, nil, fmt.Errorf("the mount at %s: %w", m.Destination, err)
		}
	}
	return c, resolver, nil
}

// plugins are the directories of the kubelet's kinds of volumes, which end the path of one with its name.
const (
	emptyDir  = "kubernetes.io~empty-dir"
	configMap = "kubernetes.io~configmap"
)

// bind takes what is the kubelet's or the runtime's, and refuses all else of the host's.
func (c *Container) bind(m specs.Mount, resolver *[]byte) error {
	switch destination := path.Clean(m.Destination); {
	case destination == HostsFile, destination == hostnameFile, destination == "/dev/shm":
		return nil // as the manifest says
	case destination == ResolverFile:
		b, err := readFile(m.Source)
		*resolver = nameServers(b)
		return err
	case strings.Contains(m.Source, "/containers/") && strings.Contains(m.Source, "/pods/"):
		return nil // where the kubelet would read a last message: it does not read in this machine
	}
	kind, name := filepath.Base(filepath.Dir(m.Source)), filepath.Base(m.Source)
	switch kind {
	case emptyDir:
		c.Volumes = append(c.Volumes, Volume{Name: name, Destination: m.Destination, ReadOnly: slices.Contains(m.Options, "ro")})
		return nil
	case configMap:
		files, err := readConfigMap(m.Source, m.Destination)
		c.Files = append(c.Files, files...)
		return err
	}
	return errors.New("a container of the class confidential has nothing of its host's: emptyDir and configMap are the only volumes, without subPath " +
		"(for a token: automountServiceAccountToken: false; for a secret: the broker's)")
}

// readConfigMap reads the files of a directory as the kubelet writes it: links into another one, which is replaced at a change.
func readConfigMap(dir, destination string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if len(files) >= maxFiles {
			return nil, fmt.Errorf("more than %d files", maxFiles)
		}
		name := filepath.Join(dir, e.Name())
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		b, err := readFile(name)
		if err != nil {
			return nil, err
		}
		files = append(files, File{Path: path.Join(destination, e.Name()), Mode: uint32(info.Mode().Perm()), Content: b})
	}
	return files, nil
}

// readFile reads a small regular file.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s: %w: it is no file", name, fs.ErrInvalid))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(b) > maxFileBytes {
		err = fmt.Errorf("%s has more than %d bytes", name, maxFileBytes)
	}
	return b, err
}

// nameServers are the lines of a resolv.conf that say something, in plain text.
func nameServers(conf []byte) []byte {
	var text bytes.Buffer
	for line := range strings.Lines(string(conf)) {
		word := strings.Fields(line)
		switch {
		case strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r > '~' }):
		case len(word) > 1 && word[0] == "nameserver":
			if _, err := netip.ParseAddr(word[1]); err == nil {
				fmt.Fprintf(&text, "nameserver %s\n", word[1])
			}
		case len(word) > 1 && (word[0] == "search" || word[0] == "options"):
			fmt.Fprintln(&text, strings.Join(word, " "))
		}
	}
	return text.Bytes()
}
