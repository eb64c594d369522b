package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"manis/vmm"
	"manis/vmm/jail"
)

// AgentPort is the name of the guest's virtio-serial port for the agent, as
// in /sys/class/virtio-ports/*/name.
const AgentPort = "manis.agent.0"

// kernelHZ is CONFIG_HZ of our guest kernel (guest/kernel/config).
const kernelHZ = 250

// emulatedCPU is every feature that TCG has, but for long addresses, which nobody
// needs, and for the promise that string instructions are fast: TCG executes
// them byte by byte, and a kernel and a Go runtime that believe the promise copy
// with nothing else. 50 MB through a container's stdout cost QEMU 2.2 to 3.8 s of
// CPU time with it and 1.3 s without.
const emulatedCPU = "max,la57=off,erms=off,fsrm=off"

// translationCache bounds the memory of TCG's translated code, in MiB. QEMU's
// default is up to 1 GiB. A boot to a shell fills what it gets; below 32 it costs CPU time
// because code is translated again and again. Measured on a busy 2-core
// host, QEMU's memory without the guest's and its CPU time up to the first
// process, two VCPUs: 12 MiB 50 MB 4.3 s, 16 MiB 55 MB 3.5 s, 24 MiB 67 MB 3.2 s,
// 32 MiB 74 MB 2.6 s, 48 MiB 90 MB 2.6 s, 64 MiB 104 MB 2.6 s.
const translationCache = 32

// The paths of the kernel and the initial file system inside the jail.
const (
	kernelPath = "/kernel"
	initrdPath = "/initrd"
	memoryPath = "/memory"
	// resumerPath is that of the program that continues a saved QEMU.
	resumerPath = "/resumer"
)

// The descriptors that QEMU inherits; the NIC and then the disks follow.
const (
	fdNull = iota
	fdOut
	fdErr
	fdQMP
	fdAgent
	fdConsole
	fdFree
)

// always are arguments of every QEMU: nothing that was not asked for, and its
// own filter of system calls.
var always = []string{
	"-nodefaults", "-no-user-config", "-display", "none",
	"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
}

// arguments returns QEMU's command line and the descriptors from fdFree on.
func arguments(c *vmm.Config, in *Installation, tscKHz int, tpm *os.File) ([]string, []*os.File, error) {
	var files []*os.File
	inherit := func(f *os.File) int {
		files = append(files, f)
		return fdFree + len(files) - 1
	}
	mib := c.MemoryBytes >> 20
	// Guest memory is a file that all clones map copy on write, or that its only VM
	// writes to until it is frozen, or without either has no name.
	memory := fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", mib)
	switch {
	case c.Frozen != nil:
		memory = fmt.Sprintf("memory-backend-file,id=ram,size=%dM,share=off,mem-path=%s", mib, memoryPath)
	case c.MemoryFile != "":
		memory = fmt.Sprintf("memory-backend-file,id=ram,size=%dM,share=on,mem-path=%s", mib, memoryPath)
	}
	// Memory that may be added later has addresses, but nothing else.
	size := fmt.Sprintf("size=%dM", mib)
	if c.MaxMemoryBytes > c.MemoryBytes {
		size += fmt.Sprintf(",maxmem=%dM", c.MaxMemoryBytes>>20)
	}
	a := append(slices.Clone(always),
		"-no-reboot", "-bios", bios(c, in),
		"-machine", "q35,memory-backend=ram,dump-guest-core=off,usb=off,sata=off,smbus=off,graphics=off,vmport=off,i8042=off,hpet=off",
		"-m", size,
		"-object", memory,
		// All that there may ever be: see spares.
		"-smp", strconv.Itoa(max(c.VCPUs, 1)+spares(c)),
	)
	for _, dir := range in.firmwareDirs(c.Unjailed) {
		a = append(a, "-L", dir)
	}
	if c.Accel == vmm.AccelKVM {
		a = append(a, "-accel", "kvm", "-cpu", "host")
	} else {
		a = append(a, "-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", max(c.CodeCache>>20, translationCache)+uint64(spares(c))*spareCache), "-cpu", emulatedCPU)
	}
	a = append(a,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-device", "pvpanic",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole),
		"-device", "virtio-serial-pci,max_ports=2,disable-legacy=on",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fdAgent), "-device", "virtserialport,id=agent,chardev=agent,name="+AgentPort,
		// A bridge has room for what is plugged into it later if something is there when the guest's kernel boots: it
		// makes the windows at least 1 MiB large, which is 50 network interfaces.
		"-device", "pci-bridge,id="+plugBus+",chassis_nr=1",
	)
	if c.Firmware == "" {
		a = append(a, "-device", "isa-serial,chardev=console", "-device", "virtio-rng-pci,disable-legacy=on,addr=1,bus="+plugBus)
	} else {
		a = append(a,
			"-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", inherit(tpm)), "-tpmdev", "emulator,id=tpm,chardev=tpm",
			"-device", "tpm-crb,tpmdev=tpm")
	}
	for i, d := range c.Disks {
		if d.File != nil {
			a = append(a, "-add-fd", fmt.Sprintf("fd=%d,set=%d", inherit(d.File), i+1))
		}
		node, err := blockNode(fmt.Sprintf("disk%d", i), i+1, d)
		if err != nil {
			return nil, nil, err
		}
		a = append(a,
			"-blockdev", node,
			// Errors are the guest's to handle: by default a full host disk would
			// stop it without a word.
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%s,write-cache=on,rerror=report,werror=report,disable-legacy=on", i, d.Serial))
	}
	if n := c.NIC; n != nil {
		fd := inherit(n.File())
		back := fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", fd)
		if n.Tap != nil {
			back = fmt.Sprintf("tap,id=net,fd=%d,vhost=off", fd)
		}
		a = append(a,
			"-netdev", back,
			"-device", "virtio-net-pci,netdev=net,romfile=,disable-legacy=on,guest_announce=off,mac="+n.MAC)
	}
	for i, s := range c.Shares {
		model := "none"
		if s.MapOwnership {
			model = "mapped-xattr"
		}
		a = append(a,
			"-fsdev", fmt.Sprintf("local,id=share%d,path=%s/%s,security_model=%s,multidevs=remap", i, jail.SharesDir, s.Tag, model),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=share%d,mount_tag=%s,disable-legacy=on", i, s.Tag))
	}
	if c.Frozen != nil {
		return append(a, "-incoming", "defer"), append(files, c.Frozen.State), nil
	}
	kernel, initrd := kernelPath, initrdPath
	if c.Unjailed {
		kernel, initrd = c.Kernel, c.Initrd
	}
	a = append(a, "-kernel", kernel)
	if c.Initrd != "" {
		a = append(a, "-initrd", initrd)
	}
	return append(a, "-append", cmdline(c, tscKHz)), files, nil
}

// bios is the firmware that the machine starts with.
func bios(c *vmm.Config, in *Installation) string {
	if c.Firmware != "" {
		return firmwareFile
	}
	return in.bios()
}

// spareCache is what a processor that is not in use holds of the memory for translated code, in MiB, without touching it.
const spareCache = 2

// spares is how many processors the machine has that its guest does not use until the machine grows: they stand and cost a thread
// each. Processors that are plugged in later would be neater, but QEMU 7.2 has ended when one came, by its sources as all of the memory for translated
// code was in use (tcg_region_initial_alloc), which it is after some work.
func spares(c *vmm.Config) int { return max(0, c.MaxVCPUs-max(c.VCPUs, 1)) }

// cmdline is the kernel's command line.
func cmdline(c *vmm.Config, tscKHz int) string {
	words := []string{"panic=-1", "reboot=t", "quiet"}
	if c.Firmware == "" {
		words = append([]string{"console=ttyS0"}, words...)
	}
	if spares(c) > 0 {
		words = append(words, fmt.Sprintf("maxcpus=%d", max(c.VCPUs, 1)))
	}
	if c.Accel != vmm.AccelKVM {
		// Emulated code cannot be observed by speculation, so the guest's guards
		// against it only cost. Its TSC is the host's; a watchdog that compares it
		// with an emulated timer on a busy host would find it broken.
		words = append(words, "mitigations=off", "tsc=reliable", "no_timer_check")
		if tscKHz > 0 {
			// Without these the kernel calibrates against an emulated timer,
			// which takes long and never ends on a busy host.
			words = append(words, fmt.Sprintf("tsc_early_khz=%d", tscKHz), fmt.Sprintf("lpj=%d", tscKHz*1000/kernelHZ))
		}
	}
	return strings.Join(append(words, c.Cmdline...), " ")
}

// slotBytes is the size of the disk in an empty slot. A guest goes on believing in it when the slot
// is filled: it must not be smaller than any file. What lies beyond the file's end fails when it is read,
// and no filesystem on it does.
const slotBytes = 16 << 40

// blockNode returns the block device node for a disk whose descriptor is in set.
func blockNode(name string, set int, d vmm.Disk) (string, error) {
	if d.File == nil {
		// Two nodes, so that the lower one can be exchanged.
		b, err := json.Marshal(map[string]any{
			"node-name": name, "driver": "raw", "read-only": d.ReadOnly, "file": emptyNode("", d.ReadOnly),
		})
		return string(b), err
	}
	node, err := fileNode(name, set, d)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(node)
	return string(b), err
}

// emptyNode is what lies below a slot without a disk.
func emptyNode(name string, readOnly bool) map[string]any {
	node := map[string]any{"driver": "null-co", "size": int64(slotBytes), "read-zeroes": true, "read-only": readOnly}
	if name != "" {
		node["node-name"] = name
	}
	return node
}

// fileNode is the block device node of a disk's file, whose descriptor is in set.
func fileNode(name string, set int, d vmm.Disk) (map[string]any, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.File.Fd()), &st); err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Serial, err)
	}
	driver := "file"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Size == 0 || st.Size%512 != 0 {
			return nil, fmt.Errorf("%w: disk %s has %d bytes, not a multiple of 512", vmm.ErrConfig, d.Serial, st.Size)
		}
	case unix.S_IFBLK:
		driver = "host_device"
	default:
		return nil, fmt.Errorf("%w: disk %s is neither a file nor a block device", vmm.ErrConfig, d.Serial)
	}
	return map[string]any{
		"node-name": name, "driver": driver, "filename": fmt.Sprintf("/dev/fdset/%d", set),
		"read-only": d.ReadOnly, "auto-read-only": false, "aio": "threads", "discard": "unmap",
		"cache": map[string]bool{"direct": false, "no-flush": d.Sync == vmm.SyncUnsafe},
	}, nil
}
