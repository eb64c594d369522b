package qemu

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"manis/vmm"
)

// sectorBytes is the unit of a disk of parts.
const sectorBytes = 512

// partsNode is the block device node of a disk whose files follow each other: a disk image of VMware's in several files, whose
// description is in the first of the sets and names the others, which hold the files. QEMU takes them as they are, and does not look
// for a format in them.
func partsNode(name string, sets []int) map[string]any {
	return map[string]any{
		"node-name": name, "driver": "vmdk", "read-only": true,
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", sets[0]), "read-only": true},
	}
}

// describeParts is that description, for files in sets, padded to whole sectors.
func describeParts(parts []*os.File, sets []int) ([]byte, error) {
	if len(parts) > vmm.MaxParts {
		return nil, fmt.Errorf("%w: a disk of %d files, at most %d", vmm.ErrConfig, len(parts), vmm.MaxParts)
	}
	var b strings.Builder
	// No empty line before the parts: QEMU 7.2 takes the one behind it twice.
	b.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n")
	for i, f := range parts {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, fmt.Errorf("part %s: %w", f.Name(), err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 || st.Size%sectorBytes != 0 {
			return nil, fmt.Errorf("%w: part %s is not a file of a multiple of %d bytes", vmm.ErrConfig, f.Name(), sectorBytes)
		}
		fmt.Fprintf(&b, "RW %d FLAT \"/dev/fdset/%d\" 0\n", st.Size/sectorBytes, sets[i])
	}
	for b.Len()%sectorBytes != 0 {
		b.WriteByte('\n')
	}
	return []byte(b.String()), nil
}

// memoryFile is a file of memory that holds content, opened for reading: QEMU wants a descriptor of the kind that it asks for.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.WriteAt(content, 0); err != nil {
		return nil, fmt.Errorf("write a file in memory: %w", err)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// passTo puts a descriptor into a set of QEMU's, and returns what takes it away again.
func (v *machine) passTo(ctx context.Context, set int, f *os.File) (undo func(), err error) {
	if err := v.monitor.pass(ctx, "add-fd", map[string]any{"fdset-id": set}, f); err != nil {
		return nil, err
	}
	after := context.WithoutCancel(ctx)
	return func() { v.execute(after, "remove-fd", map[string]any{"fdset-id": set}, nil) }, nil
}
