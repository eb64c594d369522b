package declare

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"manis/container"
)

// host is a made-up host with four CPUs where ports below 9000 are taken.
var host = Host{
	CPUs: 4,
	Getenv: func(name string) (string, bool) {
		if name == "FROM_HOST" {
			return "here", true
		}
		return "", false
	},
	FreePort: func(p container.Port) bool { return p.HostPort >= 9000 },
	VolumesFrom: func(name string) ([]container.Mount, error) {
		if name != "other" {
			return nil, fmt.Errorf("%w: %s", container.ErrNotFound, name)
		}
		return []container.Mount{
			{Type: "volume", Source: "data", Destination: "/data", Anonymous: true},
			{Type: "bind", Source: "/srv", Destination: "/srv", ReadOnly: true},
			{Type: "tmpfs", Destination: "/tmp"},
		}, nil
	},
	Now: func() time.Time { return time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC) },
}

// image is one that says something about everything.
func image() *Image {
	return &Image{
		Reference: "web:1", ID: "sha256:abc", Platform: "linux/amd64",
		Config: ImageConfig{
			User:         "www",
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
			Env:          []string{"A=image", "B=image", "broken"},
			Entrypoint:   []string{"/entry"},
			Cmd:          []string{"serve", "all"},
			WorkingDir:   "/srv/www",
			Labels:       map[string]string{"a": "image", "b": "image"},
			StopSignal:   "SIGQUIT",
			Volumes:      map[string]struct{}{"/var/data": {}},
			Healthcheck:  &ImageHealth{Test: []string{"CMD", "check"}, Interval: time.Minute, Retries: -4},
		},
	}
}

func declare(t *testing.T, line string, args ...string) (*container.Config, error) {
	t.Helper()
	return declareWith(t, image(), strings.Fields(line), args)
}

func declareWith(t *testing.T, img *Image, flags, args []string) (*container.Config, error) {
	t.Helper()
	var f Flags
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.Register(fs)
	if err := fs.Parse(flags); err != nil {
		return nil, err
	}
	return f.Config(img, args, host)
}

func TestImageAlone(t *testing.T) {
	c, err := declare(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.ID) != 64 || c.Hostname != c.ID[:12] {
		t.Errorf("id %q, hostname %q", c.ID, c.Hostname)
	}
	if len(c.Mounts) != 1 || len(c.Mounts[0].Source) != 64 {
		t.Fatalf("mounts %+v", c.Mounts)
	}
	want := &container.Config{
		ID: c.ID, Created: host.Now(), Image: "web:1", ImageID: "sha256:abc", Platform: "linux/amd64",
		Process: container.Process{
			Args: []string{"/entry", "serve", "all"}, Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "all"},
			Env: []string{defaultPath, "A=image", "B=image"}, Dir: "/srv/www", User: "www",
		},
		Hostname: c.Hostname,
		Labels:   map[string]string{"a": "image", "b": "image"},
		Network:  container.Network{Mode: "user"},
		Mounts:   []container.Mount{{Type: "volume", Source: c.Mounts[0].Source, Destination: "/var/data", Anonymous: true}},
		ShmBytes: 64 << 20, StopSignal: "SIGQUIT", StopTimeout: 10 * time.Second,
		Restart: container.Restart{Policy: "no"},
		Health: &container.Health{
			Test: []string{"CMD", "check"}, Interval: time.Minute, Timeout: 30 * time.Second,
			StartInterval: 5 * time.Second, Retries: 3,
		},
		Log: container.Log{Driver: "json-file"}, Accel: "auto", Boot: "auto",
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%+v, want\n%+v", c, want)
	}
}

func TestFlags(t *testing.T) {
	tests := []struct {
		name, line string
		args       []string
		got        func(*container.Config) any
		want       any
	}{
		{"command replaces command", "", []string{"sh"}, func(c *container.Config) any { return c.Process.Args }, []string{"/entry", "sh"}},
		{"entrypoint drops the command", "--entrypoint /bin/x", nil, func(c *container.Config) any { return c.Process.Args }, []string{"/bin/x"}},
		{"entrypoint and command", "--entrypoint /bin/x", []string{"y"}, func(c *container.Config) any { return c.Process.Args }, []string{"/bin/x", "y"}},
		{"empty entrypoint", "--entrypoint=", []string{"y"}, func(c *container.Config) any { return c.Process.Args }, []string{"y"}},

		{"env", "-e A=1 -e C=3 -e FROM_HOST -e B", nil, func(c *container.Config) any { return c.Process.Env },
			[]string{defaultPath, "A=1", "C=3", "FROM_HOST=here"}},
		{"env with equals signs", "-e A=x=y -e C=", nil, func(c *container.Config) any { return c.Process.Env },
			[]string{defaultPath, "A=x=y", "B=image", "C="}},
		{"path", "-e PATH=/x", nil, func(c *container.Config) any { return c.Process.Env[0] }, "PATH=/x"},
		{"user and group", "-u 1:2 --group-add 3 --group-add audio", nil,
			func(c *container.Config) any { return c.Process.User + " " + strings.Join(c.Process.AddGroups, ",") }, "1:2 3,audio"},
		{"workdir", "-w /a/../b/", nil, func(c *container.Config) any { return c.Process.Dir }, "/b"},
		{"umask", "--umask 027", nil, func(c *container.Config) any { return *c.Process.Umask }, uint32(0o27)},
		{"labels", "-l a=flag -l c", nil, func(c *container.Config) any { return c.Labels },
			map[string]string{"a": "flag", "b": "image", "c": ""}},
		{"switches", "-it --init --read-only --rm --privileged", nil, func(c *container.Config) any {
			return []bool{c.TTY, c.OpenStdin, c.Init, c.ReadOnly, c.AutoRemove, c.Security.Privileged}
		}, []bool{true, true, true, true, true, true}},
		{"hostname", "-h box --domainname example.org", nil, func(c *container.Config) any { return c.Hostname + "." + c.Domainname }, "box.example.org"},

		{"port", "-p 8080:80", nil, func(c *container.Config) any { return ports(c) }, "8080:80/tcp"},
		{"port of one address", "-p 127.0.0.1:8080:80/udp", nil, func(c *container.Config) any { return ports(c) }, "127.0.0.1:8080:80/udp"},
		{"port range", "-p 8080-8081:80-81", nil, func(c *container.Config) any { return ports(c) }, "8080:80/tcp 8081:81/tcp"},
		{"port of a range", "-p 8990-9010:80", nil, func(c *container.Config) any { return ports(c) }, "9000:80/tcp"},
		{"all exposed ports", "-P --expose 7000-7001 --expose 80", nil, func(c *container.Config) any { return ports(c) },
			"0:53/udp 0:80/tcp 0:7000/tcp 0:7001/tcp"},
		{"all exposed ports and one chosen", "-P -p 8080:80", nil, func(c *container.Config) any { return ports(c) }, "8080:80/tcp 0:53/udp"},
		{"same port of tcp and udp", "-p 53:53 -p 53:53/udp", nil, func(c *container.Config) any { return ports(c) }, "53:53/tcp 53:53/udp"},
		{"no network", "--network none -P", nil, func(c *container.Config) any { return c.Network.Mode + ports(c) }, "none"},
		{"docker's networks", "--network bridge", nil, func(c *container.Config) any { return c.Network.Mode }, "user"},
		{"names", "--add-host a:1.2.3.4 --add-host b:host-gateway --dns 9.9.9.9 --dns-search x.org --dns-option ndots:2", nil,
			func(c *container.Config) any {
				return fmt.Sprint(c.Network.AddHosts, c.Network.DNS, c.Network.DNSSearch, c.Network.DNSOption)
			},
			"[a:1.2.3.4 b:host-gateway] [9.9.9.9] [x.org] [ndots:2]"},
		{"mac", "--mac-address 02:42:AC:00:00:01", nil, func(c *container.Config) any { return c.Network.MAC }, "02:42:ac:00:00:01"},
		{"reach", "--allow-host-loopback --allow-link-local", nil,
			func(c *container.Config) any { return []bool{c.Network.AllowHostLoopback, c.Network.AllowLinkLocal} }, []bool{true, true}},

		{"memory", "-m 256m --memory-swap 512m --memory-reservation 128M --shm-size 1g", nil, func(c *container.Config) any {
			return []uint64{c.Resources.MemoryBytes, c.Resources.MemorySwapBytes, c.Resources.MemoryReservationBytes, c.ShmBytes}
		}, []uint64{256 << 20, 512 << 20, 128 << 20, 1 << 30}},
		{"unlimited swap", "-m 256m --memory-swap -1", nil, func(c *container.Config) any { return c.Resources.MemorySwapBytes }, uint64(unlimitedBytes)},
		{"cpus", "--cpus 1.5 -c 512 --cpuset-cpus 0,2-3", nil,
			func(c *container.Config) any {
				r := c.Resources
				return fmt.Sprintf("%d %d %s", r.MilliCPUs, r.CPUShares, r.CPUSet)
			}, "1500 512 0,2-3"},
		{"cpu quota", "--cpu-period 50000 --cpu-quota 25000", nil, func(c *container.Config) any { return c.Resources.MilliCPUs }, uint64(500)},
		{"ulimits", "--ulimit nofile=1:2 --ulimit core=-1 --ulimit nofile=5", nil, func(c *container.Config) any { return c.Resources.Ulimits },
			[]container.Ulimit{{Name: "core", Soft: -1, Hard: -1}, {Name: "nofile", Soft: 5, Hard: 5}}},
		{"devices", "--device /dev/fuse --device /dev/net/tun:/dev/tun:rw --device /dev/null:r", nil, func(c *container.Config) any { return c.Resources.DeviceList },
			[]container.Device{{Path: "/dev/fuse", PathInContainer: "/dev/fuse", Access: "rwm"}, {Path: "/dev/net/tun", PathInContainer: "/dev/tun", Access: "rw"}, {Path: "/dev/null", PathInContainer: "/dev/null", Access: "r"}}},
		{"sysctls", "--sysctl net.core.somaxconn=1 --sysctl kernel.shmmax=2", nil, func(c *container.Config) any { return c.Sysctls },
			map[string]string{"net.core.somaxconn": "1", "kernel.shmmax": "2"}},
		{"pids and oom", "--pids-limit 10 --oom-score-adj -5", nil,
			func(c *container.Config) any { return []int64{c.Resources.PidsLimit, int64(c.Resources.OOMScore)} }, []int64{10, -5}},
		{"scratch", "--storage-opt size=10g --storage-opt type=memory", nil, func(c *container.Config) any { return c.Scratch },
			container.Scratch{Memory: true, Bytes: 10 << 30}},

		{"capabilities", "--cap-add net_admin --cap-add CAP_SYS_PTRACE --cap-add NET_ADMIN --cap-drop all", nil,
			func(c *container.Config) any { return fmt.Sprint(c.Security.CapAdd, c.Security.CapDrop) }, "[NET_ADMIN SYS_PTRACE] [ALL]"},
		{"security options", "--security-opt no-new-privileges --security-opt seccomp=unconfined --security-opt systempaths=unconfined --security-opt mask=/a:/b/ --security-opt apparmor=x --security-opt label:disable", nil,
			func(c *container.Config) any {
				s := c.Security
				return fmt.Sprintf("%v %s %v %v", s.NoNewPrivileges, s.Seccomp, s.UnmaskPaths, s.MaskPaths)
			}, "true unconfined [ALL] [/a /b]"},
		{"privileges may be gained", "--security-opt no-new-privileges:false", nil, func(c *container.Config) any { return c.Security.NoNewPrivileges }, false},
		{"unmask", "--security-opt unmask=/proc/kcore", nil, func(c *container.Config) any { return c.Security.UnmaskPaths }, []string{"/proc/kcore"}},

		{"stopping", "--stop-signal usr1 --stop-timeout 3", nil, func(c *container.Config) any { return fmt.Sprint(c.StopSignal, " ", c.StopTimeout) }, "usr1 3s"},
		{"stopping at once", "--stop-timeout 0", nil, func(c *container.Config) any { return c.StopTimeout }, time.Duration(0)},
		{"waiting for ever", "--stop-timeout -1", nil, func(c *container.Config) any { return c.StopTimeout > 1000*time.Hour }, true},
		{"restart", "--restart on-failure:3", nil, func(c *container.Config) any { return c.Restart }, container.Restart{Policy: "on-failure", Max: 3}},
		{"health of the flags", "--health-cmd true --health-interval 1s --health-retries 5 --health-start-period 1m", nil, func(c *container.Config) any { return *c.Health },
			container.Health{Test: []string{"CMD-SHELL", "true"}, Interval: time.Second, Timeout: 30 * time.Second, StartPeriod: time.Minute, StartInterval: 5 * time.Second, Retries: 5}},
		{"no health", "--no-healthcheck", nil, func(c *container.Config) any { return c.Health == nil }, true},
		{"log", "--log-opt max-size=10m --log-opt max-file=3", nil, func(c *container.Config) any { return c.Log },
			container.Log{Driver: "json-file", MaxBytes: 10 << 20, MaxFiles: 3}},
		{"no log", "--log-driver none", nil, func(c *container.Config) any { return c.Log.Driver }, "none"},
		{"accel", "--accel tcg", nil, func(c *container.Config) any { return c.Accel }, "tcg"},
		{"boot", "--boot cold", nil, func(c *container.Config) any { return c.Boot }, "cold"},

		{"mounts", "-v /b/x:/b -v cache:/b/c:ro --mount type=volume,dst=/d --tmpfs /e:size=1m -v /var/data", nil, func(c *container.Config) any {
			var all []string
			for _, m := range c.Mounts {
				source := m.Source
				if m.Anonymous {
					source = "?"
				}
				all = append(all, fmt.Sprintf("%s %s %s %v %v", m.Type, source, m.Destination, m.ReadOnly, m.Options))
			}
			return strings.Join(all, "; ")
		}, "bind /b/x /b false []; volume ? /d false []; tmpfs  /e false [size=1048576]; volume cache /b/c true []; volume ? /var/data false []"},
		{"volumes from", "--volumes-from other:ro", nil, func(c *container.Config) any {
			return slices.DeleteFunc(c.Mounts, func(m container.Mount) bool { return m.Anonymous })
		}, []container.Mount{
			{Type: "volume", Source: "data", Destination: "/data", ReadOnly: true},
			{Type: "bind", Source: "/srv", Destination: "/srv", ReadOnly: true},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := declare(t, tt.line, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.got(c); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v, want %#v", got, tt.want)
			}
		})
	}
}

func ports(c *container.Config) string {
	var all []string
	for _, p := range c.Network.Ports {
		s := fmt.Sprintf("%d:%d/%s", p.HostPort, p.ContainerPort, p.Protocol)
		if p.HostIP.IsValid() {
			s = p.HostIP.String() + ":" + s
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	profile := filepath.Join(dir, "profile.json")
	os.WriteFile(profile, []byte("{broken"), 0o600)
	tests := []struct{ line, want string }{
		{"--nope", "unknown flag: --nope"},
		{"-m abc", `invalid argument "abc" for "-m, --memory"`},
		{"-m 1m", "minimum memory limit allowed is 6MB"},
		{"-m -5", "invalid"},
		{"--memory-swap 1g", "you should always set the memory limit"},
		{"-m 1g --memory-swap 10m", "larger than memory limit"},
		{"-m 10m --memory-reservation 1g", "less than memory reservation"},
		{"--shm-size x", "--shm-size"},
		{"--cpus x", "--cpus"},
		{"--cpus 5", "only 4 CPUs available"},
		{"--cpus 0.001", "0.01"},
		{"--cpus NaN", "--cpus"},
		{"--cpus 1 --cpu-quota 1000", "conflicting options"},
		{"--cpuset-cpus 4", "available: 0-3"},
		{"--cpuset-cpus 1-", "cpuset"},
		{"--cpu-shares 1", "--cpu-shares"},
		{"--pids-limit -2", "--pids-limit"},
		{"--oom-score-adj 1001", "[-1000, 1000]"},
		{"--ulimit nofile", "invalid ulimit argument: nofile"},
		{"--ulimit nope=1", "invalid ulimit type: nope"},
		{"--ulimit nofile=2:1", "soft limit must be less than or equal to hard limit"},
		{"--ulimit nofile=-1:5", "soft limit"},
		{"--device null", "/dev/"},
		{"--device /dev/../etc", "/dev/"},
		{"--device /dev/a:/dev/b:rwx", "bad mode"},
		{"--sysctl x", "name=value"},
		{"--sysctl ../../x=1", "sysctl"},
		{"--storage-opt size=0", "size"},
		{"--storage-opt nope=1", "unknown storage option"},
		{"--cap-add NOPE", `invalid capability: "NOPE"`},
		{"--security-opt nope=1", "invalid --security-opt"},
		{"--security-opt seccomp=/nowhere/x", "/nowhere/x"},
		{"--security-opt seccomp=" + profile, profile},
		{"--security-opt mask=relative", "absolute"},
		{"--security-opt no-new-privileges=maybe", "true or false"},
		{"-p 99999", "99999"},
		{"-p 80:80/icmp", "icmp"},
		{"-p 80:80 -p 80:81", "host port 80/tcp is published twice"},
		{"-p 80-90:80", "all ports are allocated"},
		{"--expose 1:2", "--expose"},
		{"--network host", "cannot join the host's network"},
		{"--network container:x", "do not share a network"},
		{"--network nope", "network nope not found"},
		{"--network none -p 80", "--network none"},
		{"--add-host x", "--add-host"},
		{"--dns x", "x is not an ip address"},
		{"--mac-address x", "x is not a valid mac address"},
		{"--mac-address ff:ff:ff:ff:ff:ff", "not a valid mac address"},
		{"-h bad_name-", "invalid hostname format"},
		{"-w relative", "needs to be an absolute path"},
		{"-u :1", "invalid user"},
		{"--umask 9", "--umask"},
		{"-e =x", "invalid environment variable"},
		{"-l =x", "invalid label"},
		{"--env-file /nowhere/env", "/nowhere/env"},
		{"--restart sometimes", "unknown policy 'sometimes'"},
		{"--restart always:3", "maximum retry count cannot be used"},
		{"--restart on-failure:x", "must be an integer"},
		{"--restart always --rm", "--restart and --rm"},
		{"--stop-signal NOPE", "invalid signal: NOPE"},
		{"--no-healthcheck --health-cmd x", "--no-healthcheck conflicts"},
		{"--health-interval -1s", "cannot be negative"},
		{"--health-interval 1us", "less than 1ms"},
		{"--health-retries -1", "--health-retries"},
		{"--log-driver syslog", "unknown logging driver"},
		{"--log-opt labels=x", "unknown log opt 'labels'"},
		{"--log-opt max-size=-1", "max-size"},
		{"--log-opt max-file=0", "max-file"},
		{"--log-driver none --log-opt max-size=1", "driver none"},
		{"--accel fast", "auto, kvm or tcg"},
		{"--boot warm", "auto, template or cold"},
		{"--pull sometimes", "pull option"},
		{"--pid host", "virtual machine"},
		{"--ipc host", "virtual machine"},
		{"--userns host", "virtual machine"},
		{"--gpus all", "GPUs"},
		{"--runtime runc", "runtime"},
		{"-v a:b", "must be absolute"},
		{"-v /a:/", "can't be '/'"},
		{"-v /a:/b:zz", "unknown option"},
		{"-v a:/x --tmpfs /x", "duplicate mount point: /x"},
		{"--mount type=nope,dst=/x", "nope"},
		{"--tmpfs relative", "absolute"},
		{"--volumes-from nobody", "no such container"},
		{"--volumes-from other:x", "--volumes-from"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			c, err := declare(t, tt.line)
			if err == nil {
				t.Fatalf("no error, but %+v", c)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want it to say %q", err, tt.want)
			}
		})
	}
}

func TestNoCommand(t *testing.T) {
	if _, err := declareWith(t, &Image{}, nil, nil); err == nil || !strings.Contains(err.Error(), "no command specified") {
		t.Errorf("no command at all: %v", err)
	}
	if _, err := declare(t, "--entrypoint="); err == nil {
		t.Error("the image's command survived an empty entrypoint")
	}
	if _, err := declareWith(t, &Image{}, nil, []string{""}); err == nil {
		t.Error("an empty command was accepted")
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name, content string
		want          []string
		fails         string
	}{
		{"plain", "A=1\nB=two words \n", []string{"A=1", "B=two words "}, ""},
		{"comments", "# x\n\n  # y\n  A=1\n", []string{"A=1"}, ""},
		{"windows", "\xef\xbb\xbfA=1\r\nB=2\r\n", []string{"A=1", "B=2"}, ""},
		{"hash in value", "A=1 # not a comment", []string{"A=1 # not a comment"}, ""},
		{"from the host", "FROM_HOST\nMISSING\n", []string{"FROM_HOST=here"}, ""},
		{"quotes stay", `A="1"`, []string{`A="1"`}, ""},
		{"white space", "A B=1", nil, `"A B" contains whitespaces`},
		{"no name", "=1", nil, "no variable name"},
		{"not text", "A=\xff", nil, "UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(dir, "env")
			if err := os.WriteFile(name, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := declareWith(t, &Image{}, []string{"--env-file", name}, []string{"x"})
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Errorf("got error %v, want %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Process.Env[1:]; !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("flags win over files", func(t *testing.T) {
		name := filepath.Join(dir, "both")
		os.WriteFile(name, []byte("A=file\nB=file"), 0o600)
		c, err := declareWith(t, &Image{}, []string{"-e", "A=flag", "--env-file", name, "--label-file", name, "-l", "B=flag"}, []string{"x"})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Process.Env[1:]; !slices.Equal(got, []string{"A=flag", "B=file"}) {
			t.Errorf("env %q", got)
		}
		if c.Labels["A"] != "file" || c.Labels["B"] != "flag" {
			t.Errorf("labels %v", c.Labels)
		}
	})
}

func TestParseImageConfig(t *testing.T) {
	c, err := ParseImageConfig([]byte(`{"architecture":"amd64","config":{"Env":["A=1"],"Cmd":["sh"],"Healthcheck":{"Test":["CMD","x"],"Interval":1000000000}}}`))
	if err != nil || c.Env[0] != "A=1" || c.Healthcheck.Interval != time.Second {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := ParseImageConfig([]byte("{")); err == nil {
		t.Error("no error for broken JSON")
	}
}

func TestUnheeded(t *testing.T) {
	f := Flags{security: List{"apparmor=x", "seccomp=unconfined", "label:disable"}}
	if notes := f.Unheeded(); len(notes) != 2 {
		t.Errorf("got %q", notes)
	}
}

func TestCheckNeedsNoImage(t *testing.T) {
	var f Flags
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.Register(fs)
	if err := fs.Parse([]string{"--accel", "nope"}); err != nil {
		t.Fatal(err)
	}
	if err := f.Check(host); err == nil {
		t.Error("no error for a bad flag")
	}
	f = Flags{}
	fs = pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.Register(fs)
	if err := f.Check(host); err != nil {
		t.Errorf("no flags: %v", err)
	}
}

func TestRandomName(t *testing.T) {
	pattern := regexp.MustCompile(`^[a-z]+_[a-z]+[0-9]*$`)
	seen := make(map[string]bool)
	for i := range 100 {
		name := RandomName(i % 3)
		if !pattern.MatchString(name) {
			t.Errorf("name %q", name)
		}
		seen[name] = true
	}
	if len(seen) < 50 {
		t.Errorf("only %d names of 100 differ", len(seen))
	}
	for _, list := range [][]string{adjectives, animals} {
		sorted := slices.Sorted(slices.Values(list))
		if len(slices.Compact(sorted)) != len(list) {
			t.Error("a word is listed twice")
		}
	}
}

func TestExecEnv(t *testing.T) {
	getenv := func(string) (string, bool) { return "", false }
	env, err := ExecEnv(nil, []string{"A=1", "B", "A=2"}, getenv)
	if err != nil || !slices.Equal(env, []string{"A=2"}) {
		t.Errorf("got %q, %v", env, err)
	}
	if _, err := ExecEnv([]string{"/nowhere/env"}, nil, getenv); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("A=1\n#x\n B\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		lines, err := parseLines(content, "variable")
		if err != nil {
			return
		}
		for _, l := range lines {
			name, _, _ := strings.Cut(l, "=")
			if name == "" || strings.ContainsAny(name, " \t\n") || strings.Contains(l, "\n") {
				t.Errorf("line %q", l)
			}
		}
	})
}

// The writable layer of the class confidential is in memory unless a disk is asked for, whose size is never left to the host.
func TestConfidentialLayer(t *testing.T) {
	for line, want := range map[string]container.Scratch{
		"":                          {Memory: true},
		"--storage-opt size=64m":    {Memory: true, Bytes: 64 << 20},
		"--storage-opt type=memory": {Memory: true},
		"--storage-opt type=disk":   {Bytes: 10 << 30},
		"--storage-opt type=disk --storage-opt size=64m":      {Bytes: 64 << 20},
		"--storage-opt size=67108865 --storage-opt type=disk": {Bytes: 65 << 20},
		"--storage-opt type=disk --storage-opt type=memory":   {Memory: true},
	} {
		f := Flags{Drafting: true}
		fs := pflag.NewFlagSet("manifest", pflag.ContinueOnError)
		f.Register(fs)
		if err := fs.Parse(append([]string{"--class", "confidential", "--no-healthcheck"}, strings.Fields(line)...)); err != nil {
			t.Fatal(err)
		}
		img := image()
		img.Config.Volumes, img.Config.Healthcheck = nil, nil
		c, err := f.Config(img, nil, host)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		} else if c.Scratch != want {
			t.Errorf("%s: %+v", line, c.Scratch)
		}
	}
}
