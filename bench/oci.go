package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/seccomp"
)

// oci is a runtime with the command line of runc.
type oci struct {
	label, binary string
	// flags come before the verb; they name a state directory of the benchmark's.
	flags  []string
	rootfs string
	dir    string // for bundles
	last   string
	note   string // for the version
	// prefix are words before the binary's name.
	prefix []string
}

// exec is the runtime with a verb.
func (o *oci) exec(ctx context.Context, args ...string) *exec.Cmd {
	words := slices.Concat(o.prefix, []string{o.binary}, o.flags, args)
	return exec.CommandContext(ctx, words[0], words[1:]...)
}

func (o *oci) name() string { return o.label }

func (o *oci) version(ctx context.Context) string {
	return firstLine(ctx, o.binary, "--version") + o.note
}

func (o *oci) command(ctx context.Context, t task) (*exec.Cmd, func()) {
	id := fresh()
	o.last = id
	bundle := filepath.Join(o.dir, id)
	text, err := json.Marshal(o.spec(t))
	if err == nil {
		err = os.MkdirAll(bundle, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o644)
	}
	cmd := o.exec(ctx, "run", "--bundle", bundle, id)
	cmd.Err = errors.Join(cmd.Err, err)
	return interrupted(cmd), func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		o.exec(ctx, "delete", "--force", id).Run()
		os.RemoveAll(bundle)
	}
}

// address: a task with a port runs in the host's network, for none of these
// runtimes brings one.
func (o *oci) address(_ context.Context, t task) (string, error) {
	if o.label == "runsc" {
		return "", errors.New("its network would need a bridge set up by root")
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(t.port)), nil
}

func (o *oci) members(_ context.Context, cmd *exec.Cmd) (map[string][]int, error) {
	ids := make(map[int]bool)
	for _, pid := range descendants(cmd.Process.Pid) {
		ids[pid] = true
	}
	// What has detached itself carries the container's name.
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), o.last) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			ids[pid] = true
		}
	}
	// The command itself is only there because this benchmark does not detach.
	delete(ids, cmd.Process.Pid)
	var list []int
	for pid := range ids {
		list = append(list, pid)
	}
	return map[string][]int{"runtime and container": list}, nil
}

// spec is what docker would hand to the runtime, but for the writable layer
// and the network.
func (o *oci) spec(t task) *specs.Spec {
	caps := strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID
		CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE`)
	s := &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Args: t.args, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Root:     &specs.Root{Path: o.rootfs, Readonly: true},
		Hostname: "bench",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	}
	if t.volume != "" {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: t.volume, Options: []string{"rbind", "ro"}})
	}
	if t.port == 0 {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: t.netns})
	}
	if rules, err := seccomp.Default().Resolve(seccomp.Target{GOARCH: runtime.GOARCH, Capabilities: caps}); err == nil {
		s.Linux.Seccomp = rules
	}
	return s
}

// peers are the wanted runtimes that this machine has. The errors say why one is missing.
func peers(ctx context.Context, w *workshop, wanted func(string) bool) (list []subject, missing map[string]error) {
	missing = make(map[string]error)
	add := func(label string, find func() (string, error), flags ...string) {
		if !wanted(label) {
			return
		}
		if os.Geteuid() != 0 {
			missing[label] = errors.New("needs root to run from a bundle")
			return
		}
		binary, err := find()
		if err != nil {
			missing[label] = err
			return
		}
		o := &oci{label: label, binary: binary, rootfs: w.rootfs, dir: w.bundles}
		state := filepath.Join(w.dir, "state-"+label)
		o.flags = append([]string{"--root", state}, flags...)
		// runsc keeps a network namespace mounted there for its next container.
		w.later(func() { unix.Unmount(filepath.Join(state, "null-netns"), unix.MNT_DETACH) })
		err = o.try(ctx)
		if err != nil && label == "crun" {
			if prefix, release, e := withoutUnified(ctx); e == nil {
				w.later(release)
				o.prefix, o.note = prefix, " (through nsenter, because it refuses this host's cgroups)"
				err = o.try(ctx)
			}
		}
		if err != nil {
			missing[label] = err
			return
		}
		list = append(list, o)
	}
	inPath := func(name string) func() (string, error) {
		return func() (string, error) {
			path, err := exec.LookPath(name)
			if err != nil {
				return "", fmt.Errorf("not installed (apt-get install %s)", name)
			}
			return path, nil
		}
	}
	add("runc", inPath("runc"))
	add("crun", inPath("crun"))
	add("runsc", func() (string, error) { return w.runsc(ctx) }, "--ignore-cgroups", "--network=none", "--platform=systrap")
	return list, missing
}

// try runs a container, so that a runtime that cannot work on this machine is left out
// with its own words.
func (o *oci) try(ctx context.Context) error {
	cmd, done := o.command(ctx, task{args: []string{"true"}})
	defer done()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("does not run here: %w: %.200s", err, out)
	}
	return nil
}
