package bundle

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"golang.org/x/sys/unix"
	"manis/cgroup"

	"manis/container/spec"
)

type unixStat = syscall.Stat_t

func TestMounts(t *testing.T) {
	for mount, want := range map[string]string{
		`{"destination":"/x","type":"bind","source":"/dir","options":["rbind","ro","rnosuid","rprivate","sync"]}`: "share binds/0 /x rbind,ro,rnosuid,rprivate",
		`{"destination":"/x","type":"bind","source":"/mounts","options":["rbind","ro","noexec","rslave"]}`:        "share binds/0 /x rbind,noexec,rslave",
		`{"destination":"/x","type":"bind","source":"/mounts","options":["rbind","rro"]}`:                         "share binds/0 /x rbind,rro",
		`{"destination":"/x","type":"none","source":"rel","options":["bind"]}`:                                    "share binds/0 /x bind",
		`{"destination":"x/../y","type":"bind","source":"/file"}`:                                                 "share binds/0 /y bind",
		`{"destination":"/x","type":"tmpfs","options":["size=1m","rro","tmpcopyup","sync","context=\"a:b\"",""]}`: "tmpfs tmpfs /x rro,tmpcopyup,size=1m,sync",
		`{"destination":"/x","type":"cgroup","options":["ro","nsdelegate"]}`:                                      "cgroup2 cgroup /x ro",
		`{"destination":"/sys/fs/cgroup","type":"bind","source":"/cg","options":["rbind","ro"]}`:                  "cgroup2 cgroup2 /sys/fs/cgroup ro",
		`{"destination":"/sys","type":"bind","source":"/sys","options":["rbind","ro"]}`:                           "sysfs sysfs /sys ro",
		`{"destination":"/proc","type":"bind","source":"/proc","options":["rbind"]}`:                              "proc proc /proc ",
		`{"destination":"/dev/mqueue","type":"bind","source":"/dev/mqueue"}`:                                      "mqueue mqueue /dev/mqueue ",
		`{"destination":"/host/proc","type":"bind","source":"/proc","options":["ro"]}`:                            "share binds/0 /host/proc bind,ro",
		`{"destination":"/etc/x","type":"bind","source":"/dev/null","options":["ro"]}`:                            "device null /etc/x ",
		`{"destination":"/data","type":"bind","source":"/shm"}`:                                                   "share binds/0 /data bind",
	} {
		p := plan(t, `{"mounts":[`+mount+`]}`, hostFiles)
		m := p.Create.Mounts[0]
		if got := m.Type + " " + m.Source + " " + m.Destination + " " + strings.Join(m.Options, ","); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", mount, got, want)
		}
		if len(p.Binds) == 1 && p.Binds[0].HostPath == "/mounts" {
			if b, below := p.Binds[0], !strings.Contains(want, "rro"); !b.ReadOnly || b.WritableBelow != below || b.Follows != below {
				t.Errorf("%s: bind %+v", mount, b)
			}
			continue
		}
		if len(p.Binds) == 1 && (p.Binds[0].ReadOnly != strings.Contains(want, "ro,") && p.Binds[0].ReadOnly != strings.HasSuffix(want, "ro")) {
			t.Errorf("%s: bind %+v", mount, p.Binds[0])
		}
	}
	p := plan(t, `{"mounts":[{"destination":"/sys/fs/cgroup","type":"cgroup","options":["ro"]},
		{"destination":"/sys/fs/cgroup/systemd","type":"bind","source":"/sys/fs/cgroup/systemd","options":["bind"]}]}`, hostFiles)
	if m := p.Create.Mounts; len(m) != 1 || strings.Join(m[0].Options, ",") != "ro,rw" || len(p.Warnings) != 1 {
		t.Errorf("for systemd: mounts %v, warnings %q", m, p.Warnings)
	}
	// Shared memory is recognised by where it comes from.
	shm := func(source string) string {
		files := map[string]node{source: {mode: fs.ModeDir, kind: unix.TMPFS_MAGIC, size: 1 << 20}}
		p := plan(t, fmt.Sprintf(`{"mounts":[{"destination":"/dev/shm","type":"bind","source":%q}]}`, source), files)
		if len(p.Binds) != 0 || !strings.HasSuffix(strings.Join(p.Create.Mounts[0].Options, ","), "mode=1777,size=1048576") {
			t.Errorf("%v", p.Create.Mounts[0])
		}
		return p.Create.Mounts[0].Source
	}
	if a, b := shm("/a/shm"), shm("/a/shm"); a != b || a == shm("/b/shm") || !strings.HasPrefix(a, "shm-") {
		t.Errorf("names %s, %s", a, b)
	}
}

// Engines that may not make nodes bind those of the host.
func TestBoundDevices(t *testing.T) {
	p := plan(t, `{"mounts":[{"destination":"/dev","type":"tmpfs"},{"destination":"/dev/fuse","type":"bind","source":"/dev/fuse"}]}`, hostFiles)
	if d := p.Create.Devices; len(p.Create.Mounts) != 1 || len(d) != 1 || d[0].Path != "/dev/fuse" || d[0].Type != "c" || d[0].Major != 10 || d[0].Minor != 229 || d[0].Mode != 0o660 || d[0].Access != "rwm" {
		t.Errorf("mounts %v, devices %v", p.Create.Mounts, d)
	}
}

func TestDevices(t *testing.T) {
	p := plan(t, `{"linux":{"devices":[
		{"path":"/dev/fuse","type":"c","major":10,"minor":229,"fileMode":438,"uid":1,"gid":2},
		{"path":"/dev/ptmx","type":"c","major":5,"minor":2},
		{"path":"/run/pipe","type":"p"}]}}`, nil)
	if d := p.Create.Devices; len(d) != 2 || d[0].Mode != 0o666 || d[0].Uid != 1 || d[0].Gid != 2 || d[1].Type != "p" || d[0].Access != "" {
		t.Errorf("devices %v", d)
	}
	// Numbers that the host has no device for are the guest's.
	p = plan(t, `{"linux":{"devices":[{"path":"/dev/a","type":"c","major":10,"minor":666},{"path":"/dev/b","type":"b","major":8,"minor":666}]}}`, hostFiles)
	if d := p.Create.Devices; len(d) != 2 || d[1].Type != "b" || d[1].Major != 8 || d[1].Minor != 666 {
		t.Errorf("unused numbers: %v", d)
	}
	// A privileged container lists what the host has.
	caps, _ := json.Marshal(slices.DeleteFunc(spec.Capabilities(), func(c string) bool { return c == "CAP_SYS_RESOURCE" }))
	privileged := `{"process":{"capabilities":{"bounding":` + string(caps) + `}},"linux":{
		"resources":{"devices":[{"allow":true,"access":"rwm"}]},
		"devices":[{"path":"/dev/sda","type":"b","major":8,"minor":0},{"path":"/dev/kmsg","type":"c","major":1,"minor":11}]}}`
	p = plan(t, privileged, nil)
	if len(p.Create.Devices) != 1 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "/dev/sda") {
		t.Errorf("devices %v, warnings %q", p.Create.Devices, p.Warnings)
	}
	if r := p.Create.Resources.DeviceRules[0]; !r.Allow || r.Type != "a" || r.Major != -1 {
		t.Errorf("rule %v", r)
	}
	// Without root an engine binds them, and says that it means a privileged container.
	p = plan(t, `{"process":{"capabilities":{"bounding":`+string(caps)+`}},"annotations":{"io.podman.annotations.privileged":"TRUE"},
		"mounts":[{"destination":"/dev","type":"tmpfs"},{"destination":"/dev/sda","type":"bind","source":"/dev/sda"}]}`, hostFiles)
	if r := p.Create.Resources.DeviceRules[0]; !r.Allow || r.Type != "a" {
		t.Errorf("rule %v", r)
	}
	if len(p.Create.Devices) != 0 || len(p.Create.Mounts) != 1 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "/dev/sda") {
		t.Errorf("without root: %v, warnings %q", p.Create.Devices, p.Warnings)
	}
	// Nothing less is privileged.
	for _, change := range []string{`"CAP_SYS_RAWIO",`, `"allow":true,`} {
		b := parse(t, with(t, strings.Replace(privileged, change, "", 1)))
		if _, err := b.plan(Environment{}, fakeHost(nil)); err == nil || !strings.Contains(err.Error(), "/dev/sda") {
			t.Errorf("without %s: %v", change, err)
		}
	}
}

func TestResources(t *testing.T) {
	p := plan(t, `{"linux":{"resources":{
		"memory":{"limit":67108864,"swap":134217728,"reservation":1048576,"swappiness":60,"disableOOMKiller":true},
		"cpu":{"shares":1024,"quota":150000,"period":100000,"burst":1000,"cpus":"0-1, 3","mems":"0"},
		"pids":{"limit":77},"blockIO":{"weight":500},"network":{"classID":1},
		"hugepageLimits":[{"pageSize":"2MB","limit":2097152},{"pageSize":"1GB","limit":0}],
		"unified":{"memory.high":"50000000"}}}}`, nil)
	a := p.Create.Resources
	if a.MemoryBytes != 64<<20 || a.MemorySwapBytes != 128<<20 || a.MemoryLowBytes != 1<<20 || a.CpuWeight != 39 ||
		a.CpuQuotaUs != 150000 || a.CpuPeriodUs != 100000 || a.Cpuset != "0-1,3" || a.Pids != 77 {
		t.Errorf("resources %v", a)
	}
	if want := map[string]string{
		"cpu.max.burst": "1000", "memory.high": "50000000", "hugetlb.2MB.max": "2097152", "hugetlb.2MB.rsvd.max": "2097152",
	}; !reflect.DeepEqual(a.Unified, want) {
		t.Errorf("unified %v", a.Unified)
	}
	if r := p.Resources; r.MemoryBytes != 64<<20 || r.MilliCPUs != 1500 || r.CPUSet != "0-1,3" {
		t.Errorf("machine %+v", r)
	}
	if w := strings.Join(p.Warnings, "\n"); len(p.Warnings) != 3 || !strings.Contains(w, "swappiness") || !strings.Contains(w, "disableOOMKiller") || !strings.Contains(w, "network") {
		t.Errorf("warnings %s", w)
	}
	if p.BlockIO == nil || p.BlockIO.Weight != 500 || p.BlockIO.Rates != nil {
		t.Errorf("block I/O %+v", p.BlockIO)
	}
	p = plan(t, `{"linux":{"resources":{"blockIO":{"weight":0,"weightDevice":[{"major":8,"minor":0,"weight":100}],
		"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}}}`, nil)
	if want := (cgroup.BlockIO{Weights: []cgroup.DiskValue{{Major: 8, Value: 100}}, Rates: []cgroup.DiskRate{
		{DiskValue: cgroup.DiskValue{Major: 8, Value: 1000}}, {DiskValue: cgroup.DiskValue{Major: 8, Minor: 16}, Write: true, Operations: true},
	}}); !reflect.DeepEqual(p.BlockIO, &want) {
		t.Errorf("block I/O %+v", p.BlockIO)
	}
	if p = plan(t, `{"linux":{"resources":{"blockIO":{"weight":0,"leafWeight":0}}}}`, nil); p.BlockIO != nil {
		t.Errorf("no limits of block I/O: %+v", p.BlockIO)
	}
	// More than the host has, and less than a machine needs.
	p = plan(t, `{"linux":{"resources":{"memory":{"limit":1048576},"cpu":{"quota":1000000,"shares":1,"idle":0},"pids":{"limit":-1}}}}`, nil)
	if p.Resources.MilliCPUs != 4000 || len(p.Warnings) != 1 || p.Create.Resources.CpuQuotaUs != 1000000 || p.Create.Resources.CpuPeriodUs != 100000 {
		t.Errorf("machine %+v, warnings %q", p.Resources, p.Warnings)
	}
	if p.Resources.MemoryBytes != 6<<20 || p.Create.Resources.MemoryBytes != 1<<20 || p.Create.Resources.CpuWeight != 1 || p.Create.Resources.Pids != 0 {
		t.Errorf("machine %+v, cgroup %v", p.Resources, p.Create.Resources)
	}
	if p = plan(t, `{"linux":{"resources":{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1,"idle":1}}}}`, nil); p.Resources.MemoryBytes != 0 || p.Resources.MilliCPUs != 0 || p.Create.Resources.Unified["cpu.idle"] != "1" {
		t.Errorf("unlimited: %+v", p.Resources)
	}
}

// An update changes what it names alone.
func TestUpdate(t *testing.T) {
	b := parse(t, with(t, `{"linux":{"resources":{"memory":{"limit":67108864},"pids":{"limit":7},"cpu":{"shares":2},
		"devices":[{"allow":true,"access":"rwm"}],"unified":{"memory.high":"1"}}}}`))
	limit, none, quota := int64(100<<20), int64(-1), int64(50000)
	if a, err := b.Resources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil || a.MemoryBytes != 100<<20 || a.Pids != 7 || a.CpuWeight != 1 || !a.DeviceRules[0].Allow || a.Unified["memory.high"] != "1" {
		t.Errorf("memory: %v, %v", a, err)
	}
	if a, err := b.Resources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}, Pids: &specs.LinuxPids{Limit: &none}}); err != nil || a.MemoryBytes != 100<<20 || a.Pids != 0 || a.CpuQuotaUs != 50000 || a.CpuWeight != 1 {
		t.Errorf("CPU: %v, %v", a, err)
	}
	tiny := int64(1)
	if _, err := b.Resources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &tiny}}); err == nil {
		t.Error("a byte of memory")
	}
	if a, err := b.Resources(nil); err != nil || a.MemoryBytes != 100<<20 {
		t.Errorf("after a mistake: %v, %v", a, err)
	}
	if *b.Spec.Linux.Resources.Memory.Limit != 64<<20 {
		t.Error("the configuration was changed")
	}
}

func TestNamespaces(t *testing.T) {
	p := plan(t, `{"hostname":"h","domainname":"d","linux":{
		"namespaces":[{"type":"network"},{"type":"uts","path":"/proc/7/ns/uts"},{"type":"user"},{"type":"time"}],
		"uidMappings":[{"containerID":0,"hostID":100000,"size":65536}],"gidMappings":[{"containerID":0,"hostID":200000,"size":1}],
		"timeOffsets":{"boottime":{"secs":-5,"nanosecs":7},"monotonic":{"secs":9}}}}`, nil)
	if p.Net != (Namespace{New: true}) || p.Namespaces[specs.UTSNamespace] != "/proc/7/ns/uts" || len(p.Namespaces) != 4 {
		t.Errorf("network %+v, namespaces %v", p.Net, p.Namespaces)
	}
	c := p.Create
	if c.Hostname != "h" || c.Domainname != "d" || c.UidMappings[0].MachineId != 100000 || c.GidMappings[0].Size != 1 || c.Time.BoottimeSeconds != -5 || c.Time.BoottimeNanoseconds != 7 || c.Time.MonotonicSeconds != 9 {
		t.Errorf("request %v", c)
	}
	// The host's processes and queues are not what such a container sees.
	if len(p.Warnings) != 2 || !strings.Contains(p.Warnings[0], "pid namespace") {
		t.Errorf("warnings %q", p.Warnings)
	}
	if p = plan(t, `{"linux":{"namespaces":[]}}`, nil); p.Create.Hostname != "outside" {
		t.Errorf("hostname %q", p.Create.Hostname)
	}
	if p = plan(t, `{}`, nil); p.Net != (Namespace{}) || len(p.Warnings) != 0 {
		t.Errorf("network %+v, warnings %q", p.Net, p.Warnings)
	}
}

func TestProcess(t *testing.T) {
	p := plan(t, `{"process":{"terminal":true,"consoleSize":{"height":24,"width":80},"user":{"uid":5,"gid":6,"additionalGids":[7]},
		"noNewPrivileges":true,"oomScoreAdj":-7,"apparmorProfile":"docker-default","selinuxLabel":"a:b",
		"capabilities":{"bounding":["CAP_CHOWN","CAP_NEWEST"],"permitted":["CAP_CHOWN","CAP_KILL"],
			"inheritable":["CAP_CHOWN"],"ambient":["CAP_CHOWN","CAP_KILL"]},
		"rlimits":[{"type":"RLIMIT_NOFILE","soft":4194304,"hard":4194305}],
		"scheduler":{"policy":"SCHED_FIFO","priority":10,"flags":["SCHED_FLAG_RESET_ON_FORK"]},
		"ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":7},"execCPUAffinity":{"initial":"0","final":"1,9"}},
		"linux":{"personality":{"domain":"LINUX32"},"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
			{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"args":[{"index":1,"value":448,"valueTwo":0,"op":"SCMP_CMP_EQ"}]}]}},
		"hooks":{"startContainer":[{"path":"/bin/hook","args":["hook","a"],"env":["A=b"],"timeout":3}],"poststop":[{"path":"/bin/x"}]},
		"annotations":{"k":"v"}}`, nil)
	a := p.Create.Process
	if !a.Terminal || a.Rows != 24 || a.Uid != 5 || a.Gid != 6 || a.AdditionalGids[0] != 7 || !a.NoNewPrivileges || a.OomScoreAdj != -7 || a.Personality != 8 ||
		a.IoPriority != 3<<13|7 || a.Scheduler.Policy != 1 || a.Scheduler.Priority != 10 || a.Scheduler.Flags != 1 || len(a.CpuAffinity) != 0 || len(a.Seccomp) == 0 {
		t.Errorf("process %v", a)
	}
	if len(a.Capabilities.Bounding) != 1 || len(a.Capabilities.Ambient) != 1 || a.Rlimits[0].Hard != 1<<20 || a.Rlimits[0].Soft != 1<<20 {
		t.Errorf("capabilities %v, limits %v", a.Capabilities, a.Rlimits)
	}
	if len(p.Warnings) != 5 {
		t.Errorf("warnings %q", p.Warnings)
	}
	h := p.Create.StartHooks
	if len(h) != 1 || h[0].Path != "/bin/hook" || h[0].TimeoutSeconds != 3 || len(h[0].Args) != 2 || h[0].Env[0] != "A=b" {
		t.Errorf("hooks %v", h)
	}
	if want := `{"ociVersion":"1.3.0","status":"created","bundle":"/b","annotations":{"k":"v"}}`; p.Create.HookState != want {
		t.Errorf("state %s, want %s", p.Create.HookState, want)
	}
	p = plan(t, `{"process":{"env":["A=1","B=2","A=3"]}}`, nil)
	if got := strings.Join(p.Create.Process.Env, " "); got != "B=2 A=3" {
		t.Errorf("environment %s", got)
	}
	b := parse(t, with(t, `{"process":{"execCPUAffinity":{"final":"1,9"}},"linux":{"personality":{"domain":"LINUX32"}}}`))
	further, err := b.Process(&specs.Process{Args: []string{"id"}, Cwd: "/"})
	if err != nil || len(further.CpuAffinity) != 2 || further.CpuAffinity[0] != 2 || further.CpuAffinity[1] != 2 || further.Personality != 8 {
		t.Errorf("further process %v, %v", further, err)
	}
	if _, err := b.Process(&specs.Process{Args: []string{"id"}, Cwd: "x"}); err == nil || !strings.HasPrefix(err.Error(), "process.cwd") {
		t.Errorf("error %v", err)
	}
}
