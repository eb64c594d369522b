package cli

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"manis/cli/declare"
	"manis/container"
	"manis/image"
	"manis/monitor"
	"manis/vmm"
)

// The types of this file are docker's inspect, field by field where there is a
// meaning for a container that has a VM to itself; what is Manis's own is under
// "Manis".

type containerShape struct {
	ID              string `json:"Id"`
	Created         time.Time
	Path            string
	Args            []string
	State           stateShape
	Image           string
	LogPath         string
	Name            string
	RestartCount    int
	Driver          string
	Platform        string
	MountLabel      string
	ProcessLabel    string
	AppArmorProfile string
	HostConfig      hostShape
	Mounts          []mountShape
	Config          configShape
	NetworkSettings networkShape
	SizeRw          *int64 `json:",omitempty"`
	Manis           manisShape
}

type stateShape struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	PID        int `json:"Pid"`
	ExitCode   int
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
	Health     *healthShape `json:",omitempty"`
}

type healthShape struct {
	Status        string
	FailingStreak int
	Log           []container.HealthResult
}

type hostShape struct {
	Binds             []string
	LogConfig         logShape
	NetworkMode       string
	PortBindings      map[string][]bindingShape
	RestartPolicy     restartShape
	AutoRemove        bool
	VolumesFrom       []string
	CapAdd            []string
	CapDrop           []string
	DNS               []string `json:"Dns"`
	DNSOptions        []string `json:"DnsOptions"`
	DNSSearch         []string `json:"DnsSearch"`
	ExtraHosts        []string
	GroupAdd          []string
	OomScoreAdj       int
	Privileged        bool
	PublishAllPorts   bool
	ReadonlyRootfs    bool
	SecurityOpt       []string
	StorageOpt        map[string]string `json:",omitempty"`
	Tmpfs             map[string]string `json:",omitempty"`
	ShmSize           uint64
	Sysctls           map[string]string `json:",omitempty"`
	Runtime           string
	Init              bool
	CPUShares         uint64 `json:"CpuShares"`
	Memory            uint64
	NanoCPUs          uint64 `json:"NanoCpus"`
	CpusetCpus        string
	Devices           []deviceShape
	MemoryReservation uint64
	MemorySwap        int64
	PidsLimit         int64
	Ulimits           []container.Ulimit
	MaskedPaths       []string
	UnmaskedPaths     []string `json:",omitempty"`
}

type logShape struct {
	Type   string
	Config map[string]string
}

type restartShape struct {
	Name              string
	MaximumRetryCount int
}

type bindingShape struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

type deviceShape struct {
	PathOnHost        string
	PathInContainer   string
	CgroupPermissions string
}

type mountShape struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

type configShape struct {
	Hostname     string
	Domainname   string
	User         string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Env          []string
	Cmd          []string
	Healthcheck  *healthcheckShape `json:",omitempty"`
	Image        string
	Volumes      map[string]struct{}
	WorkingDir   string
	Entrypoint   []string
	Labels       map[string]string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	StopSignal   string
	StopTimeout  *int `json:",omitempty"`
}

type healthcheckShape struct {
	Test          []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

type networkShape struct {
	Ports      map[string][]bindingShape
	Gateway    string
	IPAddress  string
	MacAddress string
	Networks   map[string]endpointShape
}

type endpointShape struct {
	Gateway    string
	IPAddress  string
	MacAddress string
}

// manisShape is what docker has no place for.
type manisShape struct {
	// Accel as it was asked for; VM.accel is what it came to.
	Accel string
	// Boot is the template that the machine came from, or why it was booted.
	Boot       string `json:",omitempty"`
	MonitorPid int
	VM         json.RawMessage `json:",omitempty"`
	// Jail is the part of VM that says what confines it.
	Jail        []vmm.Confinement `json:",omitempty"`
	Directory   string
	Scratch     container.Scratch
	HostAccess  hostAccessShape
	MonitorLog  string
	StoppedByUs bool `json:"StoppedByUser"`
}

type hostAccessShape struct {
	Loopback  bool
	LinkLocal bool
}

func (a *app) inspectContainer(c *container.Container, size bool) (*containerShape, error) {
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	st, err := c.State()
	if err != nil {
		return nil, err
	}
	s := shapeOf(c.Dir(), cfg, st)
	if size {
		n := writtenBytes(c)
		s.SizeRw = &n
	}
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if m.Type != "volume" {
			continue
		}
		if places, err := a.places(); err == nil {
			m.Source = filepath.Join(places.Volumes(), "volumes", m.Name, "data")
		}
	}
	return s, nil
}

// shapeOf is docker's view of a container.
func shapeOf(dir string, cfg *container.Config, st *container.State) *containerShape {
	s := &containerShape{
		ID: cfg.ID, Created: cfg.Created, Image: cfg.ImageID, Name: "/" + cfg.Name,
		RestartCount: st.RestartCount, Driver: "erofs", Platform: strings.Split(cfg.Platform+"/", "/")[0],
		HostConfig: hostShapeOf(cfg), Mounts: []mountShape{}, Config: configShapeOf(cfg),
		NetworkSettings: networkShapeOf(cfg, st),
	}
	if len(cfg.Process.Args) > 0 {
		s.Path, s.Args = cfg.Process.Args[0], cfg.Process.Args[1:]
	}
	if s.Args == nil {
		s.Args = []string{}
	}
	if cfg.Log.Driver != "none" {
		s.LogPath = filepath.Join(monitor.LogDir(dir), "container.log")
	}
	s.State = stateShape{
		Status: string(st.Status), Running: st.Status.Live(), Paused: st.Status == container.Paused,
		Restarting: st.Status == container.Restarting, OOMKilled: st.OOMKilled, Dead: st.Status == container.Dead,
		PID: st.VMPID, ExitCode: st.ExitCode, Error: st.Error, StartedAt: st.StartedAt, FinishedAt: st.FinishedAt,
	}
	if st.Health != nil {
		log := st.Health.Log
		if log == nil {
			log = []container.HealthResult{}
		}
		s.State.Health = &healthShape{st.Health.Status, st.Health.FailingStreak, log}
	}
	for _, m := range cfg.Mounts {
		shape := mountShape{Type: m.Type, Source: m.Source, Destination: m.Destination, RW: !m.ReadOnly, Propagation: "rprivate"}
		if m.ReadOnly {
			shape.Mode = "ro"
		}
		switch m.Type {
		case "volume":
			shape.Name, shape.Source, shape.Driver, shape.Propagation = m.Source, "", "local", ""
		case "tmpfs":
			shape.Propagation, shape.Mode = "", strings.Join(m.Options, ",")
		}
		s.Mounts = append(s.Mounts, shape)
	}
	s.Manis = manisShape{
		Accel: cfg.Accel, Boot: st.Boot, MonitorPid: st.MonitorPID, Directory: dir, Scratch: cfg.Scratch,
		HostAccess: hostAccessShape{cfg.Network.AllowHostLoopback, cfg.Network.AllowLinkLocal},
		MonitorLog: filepath.Join(dir, "monitor.log"), StoppedByUs: st.StoppedByUser,
	}
	if json.Valid(st.VM) {
		s.Manis.VM = st.VM
		var info vmm.Info
		if json.Unmarshal(st.VM, &info) == nil {
			s.Manis.Jail = info.Jail
		}
	}
	return s
}

func hostShapeOf(cfg *container.Config) hostShape {
	h := hostShape{
		LogConfig:   logShape{Type: cfg.Log.Driver, Config: map[string]string{}},
		NetworkMode: cfg.Network.Mode, PortBindings: map[string][]bindingShape{},
		RestartPolicy: restartShape{cfg.Restart.Policy, cfg.Restart.Max}, AutoRemove: cfg.AutoRemove,
		CapAdd: cfg.Security.CapAdd, CapDrop: cfg.Security.CapDrop,
		DNS: []string{}, DNSOptions: some(cfg.Network.DNSOption), DNSSearch: some(cfg.Network.DNSSearch),
		ExtraHosts: cfg.Network.AddHosts, GroupAdd: cfg.Process.AddGroups, OomScoreAdj: cfg.Resources.OOMScore,
		Privileged: cfg.Security.Privileged, ReadonlyRootfs: cfg.ReadOnly,
		ShmSize: cfg.ShmBytes, Sysctls: cfg.Sysctls, Runtime: "manis", Init: cfg.Init,
		CPUShares: cfg.Resources.CPUShares, Memory: cfg.Resources.MemoryBytes, NanoCPUs: cfg.Resources.MilliCPUs * 1e6,
		CpusetCpus: cfg.Resources.CPUSet, MemoryReservation: cfg.Resources.MemoryReservationBytes,
		PidsLimit: cfg.Resources.PidsLimit, Ulimits: cfg.Resources.Ulimits, Devices: []deviceShape{},
		MaskedPaths: cfg.Security.MaskPaths, UnmaskedPaths: cfg.Security.UnmaskPaths,
	}
	h.MemorySwap = int64(min(cfg.Resources.MemorySwapBytes, math.MaxInt64))
	if cfg.Resources.MemorySwapBytes == math.MaxUint64 {
		h.MemorySwap = -1
	}
	if cfg.Log.MaxBytes > 0 {
		h.LogConfig.Config["max-size"] = strconv.FormatInt(cfg.Log.MaxBytes, 10)
	}
	if cfg.Log.MaxFiles > 0 {
		h.LogConfig.Config["max-file"] = strconv.Itoa(cfg.Log.MaxFiles)
	}
	for _, p := range cfg.Network.Ports {
		key := portKey(p)
		b := bindingShape{}
		if p.HostIP.IsValid() {
			b.HostIP = p.HostIP.String()
		}
		if p.HostPort != 0 {
			b.HostPort = strconv.Itoa(int(p.HostPort))
		}
		h.PortBindings[key] = append(h.PortBindings[key], b)
	}
	for _, d := range cfg.Network.DNS {
		h.DNS = append(h.DNS, d.String())
	}
	for _, d := range cfg.Resources.DeviceList {
		h.Devices = append(h.Devices, deviceShape{d.Path, d.PathInContainer, d.Access})
	}
	if cfg.Security.NoNewPrivileges {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	if cfg.Security.Seccomp != "" {
		h.SecurityOpt = append(h.SecurityOpt, "seccomp="+cfg.Security.Seccomp)
	}
	if cfg.Scratch.Bytes > 0 {
		h.StorageOpt = map[string]string{"size": strconv.FormatUint(cfg.Scratch.Bytes, 10)}
	}
	for _, m := range cfg.Mounts {
		switch {
		case m.Type == "tmpfs":
			if h.Tmpfs == nil {
				h.Tmpfs = make(map[string]string)
			}
			h.Tmpfs[m.Destination] = strings.Join(m.Options, ",")
		case !m.Anonymous:
			bind := m.Source + ":" + m.Destination
			if m.ReadOnly {
				bind += ":ro"
			}
			h.Binds = append(h.Binds, bind)
		}
	}
	return h
}

func configShapeOf(cfg *container.Config) configShape {
	c := configShape{
		Hostname: cfg.Hostname, Domainname: cfg.Domainname, User: cfg.Process.User,
		AttachStdin: cfg.StdinOnce, AttachStdout: true, AttachStderr: true,
		Tty: cfg.TTY, OpenStdin: cfg.OpenStdin, StdinOnce: cfg.StdinOnce,
		Env: some(cfg.Process.Env), Cmd: cfg.Process.Cmd, Image: cfg.Image, WorkingDir: cfg.Process.Dir,
		Entrypoint: cfg.Process.Entrypoint, Labels: cfg.Labels, StopSignal: cfg.StopSignal,
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	seconds := int(cfg.StopTimeout / time.Second)
	c.StopTimeout = &seconds
	if h := cfg.Health; h != nil {
		c.Healthcheck = &healthcheckShape{h.Test, h.Interval, h.Timeout, h.StartPeriod, h.StartInterval, h.Retries}
	}
	for _, m := range cfg.Mounts {
		if m.Anonymous {
			if c.Volumes == nil {
				c.Volumes = make(map[string]struct{})
			}
			c.Volumes[m.Destination] = struct{}{}
		}
	}
	for _, p := range cfg.Network.Ports {
		if c.ExposedPorts == nil {
			c.ExposedPorts = make(map[string]struct{})
		}
		c.ExposedPorts[portKey(p)] = struct{}{}
	}
	return c
}

func networkShapeOf(cfg *container.Config, st *container.State) networkShape {
	n := networkShape{
		Ports: map[string][]bindingShape{}, Gateway: st.Gateway, IPAddress: st.IPAddress, MacAddress: st.MAC,
		Networks: map[string]endpointShape{cfg.Network.Mode: {st.Gateway, st.IPAddress, st.MAC}},
	}
	for _, p := range st.Ports {
		key := portKey(p)
		ips := []string{"0.0.0.0", "::"}
		if p.HostIP.IsValid() {
			ips = []string{p.HostIP.String()}
		}
		for _, ip := range ips {
			n.Ports[key] = append(n.Ports[key], bindingShape{ip, strconv.Itoa(int(p.HostPort))})
		}
	}
	return n
}

func portKey(p container.Port) string { return fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol) }

// some is an empty list instead of none.
func some(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

type imageShape struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Parent       string
	Comment      string
	Created      time.Time
	Author       string
	Architecture string
	Variant      string `json:",omitempty"`
	OS           string `json:"Os"`
	Size         int64
	Config       declare.ImageConfig
	GraphDriver  driverShape
	RootFS       rootShape
	Metadata     metadataShape
	Manis        imageOwnShape
}

type driverShape struct {
	Name string
	Data map[string]string
}

type rootShape struct {
	Type   string
	Layers []string
}

type metadataShape struct{ LastTagTime time.Time }

// imageOwnShape is what docker has no place for.
type imageOwnShape struct {
	Manifest    string
	StoredBytes int64 `json:"StoredBytes"`
	Added       time.Time
	Containers  []string
}

func inspectImage(img *image.Image) (*imageShape, error) {
	cfg, err := declare.ParseImageConfig(img.RawConfig)
	if err != nil {
		return nil, err
	}
	s := &imageShape{
		ID: img.ID, RepoTags: some(img.Names), RepoDigests: some(img.RepoDigests), Created: img.Created,
		Author: img.Config.Author, Architecture: img.Platform.Architecture, Variant: img.Platform.Variant, OS: img.Platform.OS,
		Size: img.Size, Config: cfg, GraphDriver: driverShape{Name: "erofs"}, RootFS: rootShape{Type: "layers", Layers: []string{}},
		Metadata: metadataShape{img.Added},
		Manis:    imageOwnShape{Manifest: img.ManifestID.String(), StoredBytes: img.Stored, Added: img.Added, Containers: some(img.Users)},
	}
	if s.Architecture == "" {
		s.Architecture, s.OS = runtime.GOARCH, "linux"
	}
	if n := len(img.Config.History); n > 0 {
		s.Comment = img.Config.History[n-1].Comment
	}
	for _, d := range img.Config.RootFS.DiffIDs {
		s.RootFS.Layers = append(s.RootFS.Layers, d.String())
	}
	return s, nil
}
