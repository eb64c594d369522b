package declare

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"manis/container"
	"manis/container/spec"
	"manis/storage"
)

// Defaults of docker's.
const (
	defaultShm         = 64 << 20
	defaultStopTimeout = 10 * time.Second
	defaultPath        = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// minMemory is the least that --memory may give a container.
	minMemory = 6 << 20
)

// Host is what a declaration needs to know of the place where it is made.
type Host struct {
	// CPUs is how many there are.
	CPUs int
	// Getenv looks a variable up for -e NAME.
	Getenv func(string) (string, bool)
	// FreePort reports whether something could listen there now, for a range of
	// host ports to choose from.
	FreePort func(container.Port) bool
	// VolumesFrom finds another container's mounts. May be nil without
	// --volumes-from.
	VolumesFrom func(name string) ([]container.Mount, error)
	// ResolveMounts settles the user's mounts against the host's files. May be
	// nil when only the flags are looked at.
	ResolveMounts func([]storage.Mount) ([]storage.Mount, error)
	Now           func() time.Time
}

// ThisHost is the host that runs this process.
func ThisHost() Host {
	return Host{CPUs: runtime.NumCPU(), Getenv: os.LookupEnv, FreePort: freePort, ResolveMounts: storage.ResolveMounts, Now: time.Now}
}

// Check finds what is wrong with the flags whatever the image is, so that a
// mistake costs no pull.
func (f *Flags) Check(h Host) error {
	h.ResolveMounts = nil
	_, err := f.Config(&Image{Config: ImageConfig{Cmd: []string{"true"}}}, nil, h)
	return err
}

// Config merges flags, command line and image: the flags win over the image, and
// the image over the defaults. args replace the image's command.
func (f *Flags) Config(img *Image, args []string, h Host) (*container.Config, error) {
	if err := f.sharing(); err != nil {
		return nil, err
	}
	switch f.Pull {
	case "always", "missing", "never":
	default:
		return nil, fmt.Errorf("invalid pull option: %q: must be one of \"always\", \"missing\" or \"never\"", f.Pull)
	}
	id := container.NewID()
	c := &container.Config{
		ID: id, Name: f.Name, Created: h.Now().UTC(),
		Image: img.Reference, ImageID: img.ID, Platform: img.Platform,
		TTY: f.TTY, OpenStdin: f.Stdin, StdinOnce: f.StdinOnce,
		Hostname: f.hostname, Domainname: f.domainname,
		Init: f.init, ReadOnly: f.readOnly,
		AutoRemove: f.Remove,
		Accel:      f.accel,
		Boot:       f.boot,
	}
	if c.Hostname == "" {
		c.Hostname = id[:12]
	}
	for _, step := range []func(*container.Config, *Image, []string, Host) error{
		f.setProcess, f.setLabels, f.setNetwork, f.setResources, f.setSecurity, f.setMounts,
		f.setStop, f.setHealth, f.setLog, f.setClass,
	} {
		if err := step(c, img, args, h); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (f *Flags) setProcess(c *container.Config, img *Image, args []string, h Host) error {
	p := &c.Process
	p.Entrypoint, p.Cmd = slices.Clone(img.Config.Entrypoint), slices.Clone(img.Config.Cmd)
	if f.entrypoint.set {
		// The image's command belongs to the image's entrypoint.
		p.Entrypoint, p.Cmd = nil, nil
		if f.entrypoint.value != "" {
			p.Entrypoint = []string{f.entrypoint.value}
		}
	}
	if len(args) > 0 {
		p.Cmd = slices.Clone(args)
	}
	p.Args = slices.Concat(p.Entrypoint, p.Cmd)
	if len(p.Args) == 0 {
		return errors.New("no command specified: the image has none either")
	}
	if p.Args[0] == "" {
		return errors.New("no command specified: the first word is empty")
	}

	var err error
	if p.Env, err = f.environment(img.Config.Env, h); err != nil {
		return err
	}
	p.Dir = img.Config.WorkingDir
	if f.workdir != "" {
		p.Dir = f.workdir
		if !path.IsAbs(p.Dir) {
			return fmt.Errorf("the working directory %q is invalid, it needs to be an absolute path", f.workdir)
		}
	}
	p.Dir = path.Clean("/" + p.Dir)
	p.User = img.Config.User
	if f.user != "" {
		p.User = f.user
	}
	if err := checkUser(p.User); err != nil {
		return err
	}
	p.AddGroups = slices.Clone(f.groups)
	if f.umask.set {
		umask := f.umask.value
		p.Umask = &umask
	}
	return nil
}

func checkUser(user string) error {
	name, group, hasGroup := strings.Cut(user, ":")
	if user != "" && name == "" || hasGroup && group == "" || strings.ContainsAny(user, "\x00\n") {
		return fmt.Errorf("invalid user %q: expected <name|uid>[:<group|gid>]", user)
	}
	return nil
}

func (f *Flags) setLabels(c *container.Config, img *Image, _ []string, _ Host) error {
	labels := maps.Clone(img.Config.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	lines, err := readLines(f.labelFiles, "label")
	if err != nil {
		return err
	}
	for _, l := range slices.Concat(lines, f.labels) {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return fmt.Errorf("invalid label %q: empty name", l)
		}
		labels[key] = value
	}
	if len(labels) > 0 {
		c.Labels = labels
	}
	return nil
}

func (f *Flags) setStop(c *container.Config, img *Image, _ []string, _ Host) error {
	c.StopSignal = img.Config.StopSignal
	if f.stopSignal != "" {
		c.StopSignal = f.stopSignal
	}
	if c.StopSignal == "" {
		c.StopSignal = "SIGTERM"
	}
	if _, err := spec.Signal(c.StopSignal); err != nil {
		return err
	}
	c.StopTimeout = defaultStopTimeout
	if f.stopTimeout.set {
		seconds := f.stopTimeout.value
		if seconds < 0 {
			// Docker's way to say: as long as it takes.
			seconds = int(forever / time.Second)
		}
		c.StopTimeout = time.Duration(seconds) * time.Second
	}
	restart, err := ParseRestart(f.restart)
	if err != nil {
		return err
	}
	if f.Remove && restart.Policy != "no" {
		return errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	c.Restart = restart
	return nil
}

// forever is longer than anybody waits, and far from overflowing.
const forever = 100 * 365 * 24 * time.Hour

// ParseRestart reads a restart policy: no, always, unless-stopped,
// on-failure[:max].
func ParseRestart(s string) (container.Restart, error) {
	policy, count, counted := strings.Cut(s, ":")
	r := container.Restart{Policy: policy}
	switch policy {
	case "":
		r.Policy = "no"
		if counted {
			return r, fmt.Errorf("invalid restart policy format: %q: no policy provided before colon", s)
		}
	case "no", "always", "unless-stopped":
		if counted {
			return r, fmt.Errorf("invalid restart policy %q: maximum retry count cannot be used with restart policy '%s'", s, policy)
		}
	case "on-failure":
		if counted {
			n, err := strconv.Atoi(count)
			if err != nil {
				return r, fmt.Errorf("invalid restart policy format: %q: maximum retry count must be an integer", s)
			}
			if n < 0 {
				return r, fmt.Errorf("invalid restart policy %q: maximum retry count cannot be negative", s)
			}
			r.Max = n
		}
	default:
		return r, fmt.Errorf("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", policy)
	}
	return r, nil
}

func (f *Flags) setLog(c *container.Config, _ *Image, _ []string, _ Host) error {
	switch f.logDriver {
	case "", "json-file", "local":
		c.Log.Driver = "json-file"
	case "none":
		c.Log.Driver = "none"
		if len(f.logOpt) > 0 {
			return fmt.Errorf("invalid logging opts for driver none: %s", f.logOpt[0])
		}
	default:
		return fmt.Errorf("unknown logging driver %q: there are json-file and none", f.logDriver)
	}
	for _, opt := range f.logOpt {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			return fmt.Errorf("invalid --log-opt %q: expected key=value", opt)
		}
		switch key {
		case "max-size":
			n, err := positiveSize(value)
			if err != nil {
				return fmt.Errorf("invalid --log-opt max-size: %w", err)
			}
			c.Log.MaxBytes = int64(n)
		case "max-file":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > 1000 {
				return fmt.Errorf("invalid --log-opt max-file: %q is not a number from 1 to 1000", value)
			}
			c.Log.MaxFiles = n
		case "mode":
			if value != "blocking" {
				return fmt.Errorf("invalid --log-opt mode=%s: logs are always written in mode blocking", value)
			}
		default:
			return fmt.Errorf("unknown log opt '%s' for %s log driver", key, c.Log.Driver)
		}
	}
	switch f.accel {
	case "auto", "kvm", "tcg":
	default:
		return fmt.Errorf("invalid --accel %q: must be auto, kvm or tcg", f.accel)
	}
	switch f.boot {
	case "auto", "template", "cold":
	default:
		return fmt.Errorf("invalid --boot %q: must be auto, template or cold", f.boot)
	}
	return nil
}

// freePort is the FreePort of this host.
func freePort(p container.Port) bool {
	host := ""
	if p.HostIP.IsValid() {
		host = p.HostIP.String()
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(p.HostPort)))
	if p.Protocol == "udp" {
		l, err := net.ListenPacket("udp", addr)
		if err != nil {
			return false
		}
		l.Close()
		return true
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	l.Close()
	return true
}
