package monitor

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
	"manis/sandbox"
	"manis/vmm"
)

// sharedRoot is the entry of the share of host directories that is a container's root in a rehearsal, and
// sharedFile one that is a file in it.
const (
	sharedRoot = "root"
	sharedFile = "file"
)

// share gives a machine for engines the share that its containers' files come by, with a root on the host to
// rehearse with if it has to.
func (s *Standby) share(vm vmm.Config, rehearses bool) (vmm.Config, error) {
	vm.Shares = slices.Clone(vm.Shares)
	i := slices.IndexFunc(vm.Shares, func(s vmm.Share) bool { return s.Tag == bindsTag })
	vm.Shares[i].Grows = true // as a pod's
	if !rehearses {
		return vm, nil
	}
	root := s.sharedDir()
	if err := furnish(root); err != nil {
		return vm, err
	}
	if err := copyProgram(filepath.Join(root, rehearsalProgram)); err != nil {
		return vm, err
	}
	file := filepath.Join(s.dir, "file")
	if err := os.WriteFile(file, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		return vm, err
	}
	// The jail's mounts hide what else is in its directory.
	vm.RunDir = filepath.Join(s.dir, "vm")
	if err := os.Mkdir(vm.RunDir, 0o700); err != nil {
		return vm, err
	}
	vm.Shares[i].Entries = []vmm.ShareEntry{{Name: sharedRoot, HostPath: root}, {Name: sharedFile, HostPath: file, File: true}}
	return vm, nil
}

func (s *Standby) sharedDir() string { return filepath.Join(s.dir, "shared") }

// furnish makes what a rehearsal wants and is not there, or not any more.
func furnish(root string) error {
	for _, name := range rehearsalFiles {
		path := filepath.Join(root, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
		} else if err := os.WriteFile(path, nil, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func copyProgram(path string) error {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer program.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, program)
	return errors.Join(err, f.Close())
}

// sharedStage is that of engines: the container's root, and files in it, are the host's.
func (s *Standby) sharedStage(_ context.Context, cfg *container.Config) (*stage, error) {
	if err := furnish(s.sharedDir()); err != nil {
		return nil, err
	}
	request, err := spec.Build(cfg, spec.Environment{Network: &s.guest, Filled: map[int]bool{}})
	if err != nil {
		return nil, err
	}
	request.Rootfs = &agent.RootFS{Share: bindsTag + "/" + sharedRoot}
	request.KeepMountOrder, request.FindCommand = true, true
	request.Files = nil
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		request.Mounts = append(request.Mounts, &agent.Mount{
			Destination: "/etc/" + name, Type: "share", Source: bindsTag + "/" + sharedFile, Options: []string{"rbind", "rprivate"},
		})
	}
	setup := s.setup()
	setup.Shares = []*agent.Share{{Tag: bindsTag}}
	return &stage{claim: sandbox.Config{Setup: setup}, request: request, clear: func() {}}, nil
}
