package qemu

import (
	"strings"
	"testing"

	"manis/vmm"
)

const smaps = `7f0000000000-7f0010000000 rw-s 00000000 00:01 5 /memfd:memory-backend-memfd (deleted)
Size:             262144 kB
Pss:               40000 kB
Private_Dirty:     39000 kB
7f0010000000-7f0012000000 rwxp 00000000 00:00 0
Pss:               16000 kB
Private_Dirty:     16000 kB
VmFlags: rd wr ex
55ee20ee5000-55ee21ee5000 r-xp 00000000 fe:00 77 /usr/bin/qemu-system-x86_64
Pss:                3000 kB
Private_Dirty:         0 kB
`

// pieces are those of a process that was continued: RAM of 256 MiB in three, and others.
const pieces = `7f0000000000-7f0008000000 rw-p 00000000 00:01 5 /pages
Pss:                1000 kB
Private_Dirty:       900 kB
7f0008000000-7f000c000000 rw-p 00000000 00:00 0
Pss:                 200 kB
Private_Dirty:       200 kB
7f000c000000-7f0010000000 rw-p 08000000 00:01 5 /pages
Pss:                 300 kB
Private_Dirty:       300 kB
7f0010000000-7f0012000000 rwxp 00000000 00:01 5 /pages
Pss:                 500 kB
Private_Dirty:       400 kB
`

func TestReadMaps(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want vmm.Memory
	}{
		"nothing":    {"", vmm.Memory{}},
		"a QEMU":     {smaps, vmm.Memory{Guest: 40000 << 10, Private: 16000 << 10, Cached: 3000 << 10}},
		"continued":  {pieces, vmm.Memory{Guest: 1500 << 10, Private: 400 << 10, Cached: 100 << 10}},
		"no numbers": {"a-b rw-p 0 0:0 0\nPss: x kB\nPrivate_Dirty: 99999999999999999999 kB\n", vmm.Memory{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := readMaps(strings.NewReader(c.in), 256<<20); err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}
