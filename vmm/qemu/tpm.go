package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"manis/vmm"
	"manis/vmm/jail"
)

// tpmProgram is the TPM in software.
const tpmProgram = "swtpm"

// firmwareFile is where measuring firmware appears inside the jail.
const firmwareFile = "/uefi"

// softTPM is the process of a machine's TPM: in a jail of its own, with one directory, which holds the TPM's state as
// long as the machine lives. It ends when QEMU closes its connection.
type softTPM struct {
	process *jail.Process
	dir     string
}

// startTPM starts the TPM of one machine. The file is QEMU's end of its control channel.
func startTPM(runDir string) (_ *softTPM, _ *os.File, err error) {
	path, err := exec.LookPath(tpmProgram)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w (the class confidential needs it: install the package swtpm)", vmm.ErrNoMonitor, err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, nil, err
	}
	closure, err := jail.FindClosure(path, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", vmm.ErrNoMonitor, err)
	}
	t := &softTPM{dir: filepath.Join(runDir, "tpm")}
	state, mount := filepath.Join(t.dir, "state"), filepath.Join(t.dir, "jail")
	for _, dir := range []string{t.dir, state, mount} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, nil, fmt.Errorf("make the TPM's directory: %w", err)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.end())
		}
	}()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "tpm")
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	defer null.Close()
	may, err := tpmCalls()
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	t.process, err = jail.Start(jail.Config{
		Closure: closure, Dir: mount, Calls: may, Name: runDir,
		Descriptors: []*os.File{null, null, null, theirs},
		Shares:      []jail.Share{{Name: "tpm", Entries: []jail.Entry{{Name: "state", Host: state, Own: true}}}},
		Args: []string{"socket", "--tpm2", "--ctrl", "type=unixio,clientfd=3", "--terminate",
			"--tpmstate", "dir=" + jail.SharesDir + "/tpm/state", "--flags", "not-need-init,startup-clear"},
	})
	if err != nil {
		ours.Close()
		return nil, nil, startError(err)
	}
	return t, ours, nil
}

// end ends the TPM and removes its state.
func (t *softTPM) end() error {
	var err error
	if t.process != nil {
		if e := t.process.Signal(unix.SIGKILL); e != nil && !errors.Is(e, os.ErrProcessDone) {
			err = e
		}
		<-t.process.Done()
		err = errors.Join(err, t.process.Release())
	}
	return errors.Join(err, os.RemoveAll(t.dir))
}
