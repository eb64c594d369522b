package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"manis/vmm"
)

// Fingerprint says what a VM of this configuration is made of: two of the same key
// are interchangeable once frozen. inputs maps the files that went into it to what
// identifies their present content; a frozen VM is of no more use when one of them
// has changed.
func (d *Driver) Fingerprint(c vmm.Config) (key string, inputs map[string]string, err error) {
	if err := checkPaths(&c); err != nil {
		return "", nil, err
	}
	if err := d.Prepare(); err != nil {
		return "", nil, err
	}
	if c.Accel == "" {
		c.Accel = vmm.AccelTCG
	}
	c.MemoryFile, c.Frozen, c.Saved, c.CodeCache = memoryPath, nil, nil, 0
	tap := c.NIC != nil && c.NIC.Tap != nil
	c.Disks, c.NIC = slices.Clone(c.Disks), nil
	for i := range c.Disks {
		c.Disks[i].File = nil
	}
	// The frequency of the clock is measured, each time a little differently.
	const coarse = 50_000
	args, _, err := arguments(&c, d.install, (d.tscKHz+coarse/2)/coarse*coarse, nil)
	if err != nil {
		return "", nil, err
	}
	inputs = map[string]string{}
	files := slices.Concat([]string{d.install.Closure.Program, c.Kernel, c.Initrd}, d.install.Closure.Loads)
	for _, path := range d.install.Firmware {
		files = append(files, path)
	}
	for _, path := range files {
		if path != "" {
			inputs[path] = identify(path)
		}
	}
	h := sha256.New()
	fmt.Fprintf(h, "manis template 1\n%q\n", args)
	if tap {
		// What its guest has agreed upon with the card is fixed.
		fmt.Fprintln(h, "tap")
	}
	slices.Sort(files)
	for _, path := range files {
		fmt.Fprintln(h, inputs[path])
	}
	if c.Accel == vmm.AccelKVM {
		// The guest has the processor's features, as the host's kernel passes them on.
		fmt.Fprintln(h, processor())
	}
	return hex.EncodeToString(h.Sum(nil)), inputs, nil
}

// Identify is the identity of the content of the file at path, as in the inputs of
// Fingerprint.
func (d *Driver) Identify(path string) string { return identify(path) }

// processor is the host's processor and kernel.
func processor() string {
	var u unix.Utsname
	unix.Uname(&u)
	words := []string{unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:])}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return strings.Join(words, " ")
	}
	first, _, _ := strings.Cut(string(b), "\n\n")
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name", "microcode", "flags", "bugs":
			words = append(words, strings.TrimSpace(value))
		}
	}
	return strings.Join(words, " ")
}
