package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// manis is the built binary with a store of its own.
type manis struct {
	label  string
	binary string
	env    []string
	image  string
	// flags come after "run".
	flags []string
	// last is the name of the latest container, for members and address.
	last string
	port int
}

// newManis prepares a store in dir; sockets need a short path of their own.
func newManis(binary, dir, run string) *manis {
	m := &manis{label: "manis", binary: binary, image: imageName}
	m.env = append(os.Environ(), "MANIS_ROOT="+filepath.Join(dir, "manis"), "MANIS_RUN="+run)
	return m
}

// variant is the same with further flags.
func (m *manis) variant(label string, flags ...string) *manis {
	v := *m
	v.label, v.flags = label, append(append([]string(nil), m.flags...), flags...)
	return &v
}

func (m *manis) name() string { return m.label }

func (m *manis) version(ctx context.Context) string {
	out, err := m.manis(ctx, "version")
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(out), " ")
}

// manis runs a command to its end.
func (m *manis) manis(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, m.binary, args...)
	cmd.Env = m.env
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("manis %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

func (m *manis) command(ctx context.Context, t task) (*exec.Cmd, func()) {
	m.last = fresh()
	args := append([]string{"run", "--rm", "--name", m.last}, m.flags...)
	if t.trace {
		args = append(args, "--trace=json")
	}
	if t.stdin {
		args = append(args, "-i")
	}
	if t.volume != "" {
		args = append(args, "-v", t.volume+":/volume:ro")
	}
	if t.port != 0 {
		m.port = freePort()
		args = append(args, "-p", fmt.Sprintf("127.0.0.1:%d:%d", m.port, t.port))
	}
	cmd := exec.CommandContext(ctx, m.binary, append(append(args, m.image), t.args...)...)
	cmd.Env = m.env
	name := m.last
	return interrupted(cmd), func() {
		if cmd.ProcessState != nil && cmd.ProcessState.Success() {
			return // it ended by itself and is gone already
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		m.manis(ctx, "rm", "-f", "-v", name)
	}
}

func (m *manis) address(ctx context.Context, t task) (string, error) {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(m.port)), nil
}

func (m *manis) members(ctx context.Context, _ *exec.Cmd) (map[string][]int, error) {
	out, err := m.manis(ctx, "inspect", "--format", "{{.State.Pid}} {{.Manis.MonitorPid}}", m.last)
	if err != nil {
		return nil, err
	}
	var vm, monitor int
	if n, err := fmt.Sscan(out, &vm, &monitor); n != 2 || vm == 0 || monitor == 0 {
		return nil, fmt.Errorf("process ids of %s: %q: %v", m.last, out, err)
	}
	qemu := descendants(vm)
	return map[string][]int{"monitor": {monitor}, "QEMU": qemu}, nil
}

// load brings the image into the store and says how long it took until the
// first container could start.
func (m *manis) load(ctx context.Context, layout string) (time.Duration, error) {
	start := time.Now()
	_, err := m.manis(ctx, "load", "-q", "-i", layout)
	return time.Since(start), err
}

// clean removes what interrupted runs have left.
func (m *manis) clean(ctx context.Context) error {
	out, err := m.manis(ctx, "ps", "-aq")
	if err != nil || out == "" {
		return err
	}
	_, err = m.manis(ctx, append([]string{"rm", "-f", "-v"}, strings.Fields(out)...)...)
	return err
}

// freePort is one that nobody listens on now.
func freePort() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
