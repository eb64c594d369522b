package qemu

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/host/memo"
	"manis/host/tsc"
	"manis/vmm/jail"
)

// memory is what a driver remembers of this host from one process to the
// next, in a file. It saves each start the reading of some fifty ELF files and
// 9 ms of watching a clock. Whoever finds it outdated or damaged looks anew.
type memory struct {
	// Program and Loader identify the QEMU and the loader's cache, which changes
	// with every library, that Closure was found for.
	Program string        `json:"program"`
	Loader  string        `json:"loader"`
	Closure *jail.Closure `json:"closure"`
	// Boot identifies the boot of the host at which TSCKHz was measured.
	Boot   string `json:"boot"`
	TSCKHz int    `json:"tsc_khz"`
}

// subject names the file.
const subject = "qemu"

func recall(dir string) memory {
	var m memory
	if !memo.Recall(dir, subject, &m) {
		return memory{}
	}
	return m
}

func (m memory) keep(dir string) { memo.Keep(dir, subject, m) }

// closure returns the remembered closure of a program, or finds it.
func (m *memory) closure(program string, loads []string) (*jail.Closure, error) {
	id, loader := identify(program)+" "+strings.Join(loads, " "), identify("/etc/ld.so.cache")
	if c := m.Closure; c != nil && m.Program == id && m.Loader == loader && c.Program == program {
		return c, nil
	}
	c, err := jail.FindClosure(program, loads)
	if err == nil {
		m.Program, m.Loader, m.Closure = id, loader, c
	}
	return c, err
}

// identify names a file so that a changed one has another name.
func identify(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return path + " missing"
	}
	return fmt.Sprintf("%s %d %d %d %d", path, st.Dev, st.Ino, st.Size, st.Mtim.Nano())
}

// tsc returns the frequency of the host's time stamp counter in kHz: as declared,
// remembered or measured; 0 when it has none that is constant.
func (m *memory) tsc() int {
	if khz, ok := tsc.Declared(); ok {
		return khz
	}
	boot, err := memo.Boot()
	if err == nil && m.Boot == boot && m.TSCKHz > 0 {
		return m.TSCKHz
	}
	khz, err2 := tsc.Measure(9 * time.Millisecond)
	if err2 != nil {
		return 0
	}
	if err == nil {
		m.Boot, m.TSCKHz = boot, khz
	}
	return khz
}
