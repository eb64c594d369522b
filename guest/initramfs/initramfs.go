// Package initramfs writes the file system a guest kernel boots into: the agent as /init,
// the empty directories it mounts on, and nothing else. The archive is a "newc" cpio, the one
// format the kernel unpacks by itself, and its bytes depend only on the agent's bytes. The
// package must not know what the agent does with the directories.
package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// MaxSize is the largest archive that Write accepts to write, in bytes. The guest holds the archive
// and its unpacked copy in memory at the same time while it boots, and every template keeps
// what is left of it.
const MaxSize = 12 << 20

// ErrTooLarge says that the agent does not fit into MaxSize.
var ErrTooLarge = errors.New("initramfs would be larger than 12 MiB")

// ErrNotStatic says that the agent needs an interpreter, which the guest does not have.
var ErrNotStatic = errors.New("agent is not a static executable for x86-64 (build it with CGO_ENABLED=0 GOARCH=amd64)")

// mountPoints are the directories of the guest's first file system, parents first.
// /dev is not among them: it comes with the console node in Write.
var mountPoints = []string{"etc", "mnt", "proc", "root", "run", "sys", "tmp"}

// Write writes the archive for the given agent, the content of a static x86-64 ELF executable, to w.
// The same agent always gives the same bytes. Errors are ErrTooLarge, ErrNotStatic or those of w.
func Write(w io.Writer, agent []byte) error {
	if err := checkExecutable(agent); err != nil {
		return err
	}
	// Headers, names and padding of everything but the agent take less than 4 KiB.
	if len(agent) > MaxSize-4<<10 {
		return fmt.Errorf("%w: the agent alone has %d bytes", ErrTooLarge, len(agent))
	}
	a := archive{w: w}
	a.entry(".", modeDir|0o755, 0, 0, nil)
	a.entry("dev", modeDir|0o755, 0, 0, nil)
	// Without this node the kernel starts /init with no standard streams at all, and a
	// panic of the agent before it has mounted devtmpfs would be lost.
	a.entry("dev/console", modeChar|0o600, 5, 1, nil)
	for _, name := range mountPoints {
		mode := uint32(modeDir | 0o755)
		if name == "tmp" {
			mode = modeDir | modeSticky | 0o777
		}
		a.entry(name, mode, 0, 0, nil)
	}
	a.entry("init", modeRegular|0o755, 0, 0, agent)
	return a.close()
}

// checkExecutable refuses what the kernel could not start as PID 1: the only sign of that in
// a guest would be a panic. It reads just enough of the ELF header and program headers.
func checkExecutable(b []byte) error {
	const (
		headerSize  = 64
		programSize = 56
		classLSB64  = "\x7fELF\x02\x01"
		machineAMD  = 62
		ptInterp    = 3
	)
	if len(b) < headerSize || !bytes.HasPrefix(b, []byte(classLSB64)) || le16(b[18:]) != machineAMD {
		return ErrNotStatic
	}
	offset, size, count := le64(b[32:]), le16(b[54:]), le16(b[56:])
	if size != programSize || offset > uint64(len(b)) || uint64(count)*programSize > uint64(len(b))-offset {
		return fmt.Errorf("%w: damaged program headers", ErrNotStatic)
	}
	for i := range uint64(count) {
		if le32(b[offset+i*programSize:]) == ptInterp {
			return ErrNotStatic
		}
	}
	return nil
}
