package oci

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"manis/pod"
)

// execution is what exec is asked for.
type execution struct {
	process, pidFile, consoleSocket, cwd, user string
	env, caps                                  []string
	gids                                       []uint
	tty, detach, noNewPrivs, ignorePaused      bool
	preserveFDs                                int
}

func (a *app) execCommand() *cobra.Command {
	var o execution
	cmd := &cobra.Command{
		Use: "exec [flags] ID COMMAND [ARG...] | exec --process FILE [flags] ID", Short: "Run a further process in a running container",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%q requires a container's id", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := a.exec(cmd, args[0], args[1:], &o)
			if err != nil {
				return &coded{255, err}
			}
			if code != 0 {
				return exit(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.process, "process", "p", "", "file with the process as config.json has it")
	f.StringVar(&o.pidFile, "pid-file", "", "file to write the process id to")
	f.StringVar(&o.consoleSocket, "console-socket", "", "unix socket that receives the terminal's descriptor")
	f.StringVar(&o.cwd, "cwd", "", "working directory")
	f.StringVarP(&o.user, "user", "u", "", "UID[:GID]")
	f.StringArrayVarP(&o.env, "env", "e", nil, "further environment variable")
	f.StringArrayVarP(&o.caps, "cap", "c", nil, "further capability")
	f.UintSliceVarP(&o.gids, "additional-gids", "g", nil, "further groups")
	f.BoolVarP(&o.tty, "tty", "t", false, "give it a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "do not wait for it")
	f.BoolVar(&o.noNewPrivs, "no-new-privs", false, "it cannot gain privileges")
	f.BoolVar(&o.ignorePaused, "ignore-paused", false, "run it in a paused container, too")
	f.IntVar(&o.preserveFDs, "preserve-fds", 0, "number of further descriptors: none can cross into a virtual machine")
	f.String("process-label", "", "accepted: labels are the host's")
	f.String("apparmor", "", "accepted: profiles are the host's")
	f.StringArray("cgroup", nil, "accepted: the process is in the container's group")
	return cmd
}

// exec runs a process and returns its exit code, 0 with --detach.
func (a *app) exec(cmd *cobra.Command, id string, args []string, o *execution) (int, error) {
	ctx := cmd.Context()
	if o.preserveFDs > 0 {
		return 0, errors.New("--preserve-fds: the container runs in a virtual machine, which open descriptors of the host cannot enter")
	}
	st, client, err := a.load(id)
	if err != nil {
		return 0, err
	}
	process, err := a.processOf(cmd, st, client, args, o)
	if err != nil {
		return 0, err
	}
	if err := a.permitExec(process); err != nil {
		return 0, err
	}
	foreground := !o.detach
	switch {
	case process.Terminal && !foreground && o.consoleSocket == "":
		return 0, errors.New("cannot allocate tty if manis will detach without setting console socket")
	case o.consoleSocket != "" && (foreground || !process.Terminal):
		return 0, errors.New("cannot use console socket if manis will not detach or allocate tty")
	}
	var master, slave *os.File
	files := []*os.File{a.in, a.out, a.err}
	switch {
	case process.Terminal && foreground:
		if slave, err = os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
			return 0, fmt.Errorf("the process wants a terminal, and the caller has none: %w", err)
		}
		defer slave.Close()
		files = []*os.File{slave}
		defer rawTerminal()()
	case process.Terminal:
		if master, slave, err = openTerminal(process.ConsoleSize); err != nil {
			return 0, err
		}
		defer master.Close()
		defer slave.Close()
		files = []*os.File{slave}
	}
	stand := pod.ProxyConfig{Args: process.Args}
	if master != nil {
		stand.Terminal = slave
	}
	proxy, err := pod.StartProxy(stand)
	if err != nil {
		return 0, err
	}
	defer proxy.Socket.Close()
	request := &pod.ExecRequest{ID: st.ID, ExecID: newExecID(), Process: process, ProxyPID: proxy.Process.Pid, IgnorePaused: o.ignorePaused}
	request.Rows, request.Columns = sizeOf(slave)
	err = client.Exec(ctx, request, append([]*os.File{proxy.Socket}, files...)...)
	if err == nil && master != nil {
		err = sendTerminal(ctx, o.consoleSocket, master)
	}
	if err == nil && o.pidFile != "" {
		err = writeFile(o.pidFile, []byte(strconv.Itoa(proxy.Process.Pid)), 0o644)
	}
	if err != nil {
		proxy.Process.Kill()
		proxy.Process.Wait()
		if errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound) {
			err = errors.New("cannot exec in a stopped container")
		}
		return 0, err
	}
	if o.detach {
		return 0, proxy.Process.Release()
	}
	return follow(proxy.Process), nil
}

func newExecID() string {
	b := make([]byte, 8)
	rand.Read(b)
	return "exec-" + hex.EncodeToString(b)
}

// maxProcess bounds a process's file, bytes.
const maxProcess = 4 << 20

// processOf is the process that exec is to run: from a file, or the container's own with other
// arguments and what the flags change.
func (a *app) processOf(cmd *cobra.Command, st *state, client *pod.Client, args []string, o *execution) (*specs.Process, error) {
	p := new(specs.Process)
	if o.process != "" {
		f, err := os.Open(o.process)
		if err != nil {
			return nil, fmt.Errorf("read the process: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxProcess+1))
		if err == nil && len(b) > maxProcess {
			err = fmt.Errorf("it has more than %d bytes", maxProcess)
		}
		if err == nil {
			err = json.Unmarshal(b, p)
		}
		if err != nil {
			return nil, fmt.Errorf("read the process of %s: %w", o.process, err)
		}
		return p, nil
	}
	if len(args) == 0 {
		return nil, errors.New("process args cannot be empty")
	}
	own, err := client.Process(cmd.Context(), st.ID)
	if errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound) {
		return nil, errors.New("cannot exec in a stopped container")
	}
	if err != nil {
		return nil, err
	}
	p = own
	p.Args, p.Terminal, p.ConsoleSize = args, o.tty, nil
	if o.cwd != "" {
		p.Cwd = o.cwd
	}
	p.Env = append(p.Env, o.env...)
	if cmd.Flags().Changed("no-new-privs") {
		p.NoNewPrivileges = o.noNewPrivs
	}
	for _, name := range o.caps {
		if p.Capabilities == nil {
			p.Capabilities = new(specs.LinuxCapabilities)
		}
		for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted, &p.Capabilities.Ambient} {
			if !slices.Contains(*set, name) {
				*set = append(*set, name)
			}
		}
	}
	if o.user != "" {
		uid, gid, hasGID := strings.Cut(o.user, ":")
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("parsing %s as int for uid failed: it must be a number", uid)
		}
		p.User.UID = uint32(n)
		if hasGID {
			if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
				return nil, fmt.Errorf("parsing %s as int for gid failed: it must be a number", gid)
			}
			p.User.GID = uint32(n)
		}
	}
	for _, gid := range o.gids {
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(gid))
	}
	return p, nil
}
