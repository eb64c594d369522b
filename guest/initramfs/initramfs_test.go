package initramfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// elf returns the smallest file that passes for an executable of the given machine, with one
// program header of the given type and with extra bytes behind it.
func elf(machine uint16, programType uint32, extra int) []byte {
	b := make([]byte, 64+56+extra)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[18:], machine)
	binary.LittleEndian.PutUint64(b[32:], 64)
	binary.LittleEndian.PutUint16(b[54:], 56)
	binary.LittleEndian.PutUint16(b[56:], 1)
	binary.LittleEndian.PutUint32(b[64:], programType)
	return b
}

const (
	amd64, arm64    = 62, 183
	ptLoad, ptInter = 1, 3
)

type file struct {
	mode, links, mtime, devMajor, devMinor uint32
	uid, gid, inode                        uint32
	content                                []byte
}

// parse reads a newc archive the way the kernel's init/initramfs.c does.
func parse(t *testing.T, b []byte) (names []string, files map[string]file) {
	t.Helper()
	files = map[string]file{}
	at := 0
	for {
		if at%4 != 0 || len(b) < at+110 || string(b[at:at+6]) != "070701" {
			t.Fatalf("no entry at %d", at)
		}
		var field [13]uint32
		for i := range field {
			v, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			field[i] = uint32(v)
		}
		nameEnd := at + 110 + int(field[11])
		name := strings.TrimSuffix(string(b[at+110:nameEnd]), "\x00")
		start := (nameEnd + 3) &^ 3
		end := start + int(field[6])
		at = (end + 3) &^ 3
		if name == "TRAILER!!!" {
			if at != len(b) {
				t.Fatalf("%d bytes after the trailer", len(b)-at)
			}
			return names, files
		}
		names = append(names, name)
		files[name] = file{
			inode: field[0], mode: field[1], uid: field[2], gid: field[3], links: field[4], mtime: field[5],
			devMajor: field[9], devMinor: field[10], content: b[start:end],
		}
	}
}

func TestArchiveHoldsAgentAndMountPoints(t *testing.T) {
	for _, extra := range []int{0, 1, 2, 3, 1 << 20} {
		t.Run(fmt.Sprint("agent of ", 120+extra, " bytes"), func(t *testing.T) {
			agent := elf(amd64, ptLoad, extra)
			var out bytes.Buffer
			if err := Write(&out, agent); err != nil {
				t.Fatal(err)
			}
			names, files := parse(t, out.Bytes())
			want := []string{".", "dev", "dev/console", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "init"}
			if fmt.Sprint(names) != fmt.Sprint(want) {
				t.Errorf("names %v, want %v", names, want)
			}
			inodes := map[uint32]bool{}
			for name, f := range files {
				if f.mtime != 0 || f.uid != 0 || f.gid != 0 {
					t.Errorf("%s: time %d, owner %d:%d; want 0, 0:0", name, f.mtime, f.uid, f.gid)
				}
				inodes[f.inode] = true
			}
			if len(inodes) != len(files) {
				t.Error("two entries share an inode number: the kernel would hard-link them")
			}
			if f := files["init"]; f.mode != 0o100755 || !bytes.Equal(f.content, agent) {
				t.Errorf("init: mode %o, %d bytes; want 100755, the agent", f.mode, len(f.content))
			}
			if f := files["dev/console"]; f.mode != 0o020600 || f.devMajor != 5 || f.devMinor != 1 {
				t.Errorf("console is %+v, want character device 5:1", f)
			}
			if f := files["tmp"]; f.mode != 0o041777 {
				t.Errorf("tmp has mode %o, want 41777", f.mode)
			}
		})
	}
}

func TestArchiveIsReproducible(t *testing.T) {
	agent := elf(amd64, ptLoad, 12345)
	var a, b bytes.Buffer
	if err := errors.Join(Write(&a, agent), Write(&b, agent)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of one agent differ")
	}
}

func TestCpioReadsTheArchive(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	var archive bytes.Buffer
	if err := Write(&archive, elf(amd64, ptLoad, 99)); err != nil {
		t.Fatal(err)
	}
	list := exec.Command(cpio, "-tv", "--numeric-uid-gid")
	list.Stdin = &archive
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio -t: %v\n%s", err, out)
	}
	for _, want := range []string{"crw-------", "drwxrwxrwt", " init\n", "dev/console"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("cpio -t does not show %q:\n%s", want, out)
		}
	}
}

func TestWriteRefusesWhatCannotBoot(t *testing.T) {
	damaged := elf(amd64, ptLoad, 0)
	binary.LittleEndian.PutUint16(damaged[56:], 65535)
	tests := []struct {
		name  string
		agent []byte
		want  error
	}{
		{"nothing", nil, ErrNotStatic},
		{"a script", bytes.Repeat([]byte("#!/bin/sh\n"), 100), ErrNotStatic},
		{"another processor", elf(arm64, ptLoad, 0), ErrNotStatic},
		{"dynamically linked", elf(amd64, ptInter, 0), ErrNotStatic},
		{"damaged headers", damaged, ErrNotStatic},
		{"12 MiB", elf(amd64, ptLoad, MaxSize), ErrTooLarge},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Write(&out, test.agent); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if out.Len() != 0 {
				t.Errorf("%d bytes written before the refusal", out.Len())
			}
		})
	}
}

func TestWriteReportsAFullDisk(t *testing.T) {
	full := errors.New("no space left")
	err := Write(writerFunc(func([]byte) (int, error) { return 0, full }), elf(amd64, ptLoad, 0))
	if !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func FuzzWrite(f *testing.F) {
	f.Add(elf(amd64, ptLoad, 3))
	f.Add(elf(amd64, ptInter, 0))
	f.Fuzz(func(t *testing.T, agent []byte) {
		var out bytes.Buffer
		if Write(&out, agent) == nil {
			parse(t, out.Bytes())
		}
	})
}
