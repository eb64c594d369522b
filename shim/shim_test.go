package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/runtime/task/v2"
	task3 "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/api/agent"
	"manis/bundle"
	"manis/pod"
)

func TestCall(t *testing.T) {
	args := []string{"-namespace", "n", "-address", "/c.sock", "-publish-binary", "/bin/containerd", "-id", "c"}
	sockets := "/sockets"
	modern, err := proto.Marshal(&bootstrap.BootstrapParams{InstanceID: "c", Namespace: "n", ContainerdGrpcAddress: "/other.sock", SocketDir: &sockets})
	if err != nil {
		t.Fatal(err)
	}
	strange, err := proto.Marshal(&bootstrap.BootstrapParams{InstanceID: "another", Namespace: "n"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		stdin string
		want  call
	}{
		"containerd 2.3":       {string(modern), call{id: "c", namespace: "n", address: "/other.sock", modern: true, socketDir: sockets, debug: false}},
		"containerd 1.7":       {"", call{id: "c", namespace: "n", address: "/c.sock"}},
		"options of a runtime": {"\n\x05hello", call{id: "c", namespace: "n", address: "/c.sock"}},
		"those of another":     {string(strange), call{id: "c", namespace: "n", address: "/c.sock"}},
		"what cannot be read":  {"\xff\xff\xff", call{id: "c", namespace: "n", address: "/c.sock"}},
	} {
		got, err := readCall(args, strings.NewReader(c.stdin))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if *got != c.want {
			t.Errorf("%s: %+v, want %+v", name, *got, c.want)
		}
	}
	if _, err := readCall([]string{"-id", "c"}, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "not by hand") {
		t.Errorf("without a namespace: %v", err)
	}
}

func FuzzCall(f *testing.F) {
	f.Add([]byte("\n\x01c\x12\x01n"))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := readCall([]string{"-namespace", "n", "-id", "c"}, bytes.NewReader(stdin))
		if err != nil || c.id != "c" || c.namespace != "n" {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

func TestRole(t *testing.T) {
	for want, annotations := range map[role]map[string]string{
		{}:                             {"io.kubernetes.cri.container-type": "container"},
		{pause: true, sandbox: "s"}:    {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "s"},
		{sandbox: "s"}:                 {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s"},
		{pause: true, sandbox: "crio"}: {"io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.SandboxID": "crio"},
	} {
		if got := roleOf(annotations); got != want {
			t.Errorf("%v: %+v, want %+v", annotations, got, want)
		}
	}
}

// TestVersions holds what registerV2 relies on: the messages of both versions are the same on the wire.
func TestVersions(t *testing.T) {
	older, newer := task.File_runtime_task_v2_shim_proto.Messages(), task3.File_runtime_task_v3_shim_proto.Messages()
	for i := range older.Len() {
		a := older.Get(i)
		b := newer.ByName(a.Name())
		if b == nil {
			t.Errorf("version 3 has no %s", a.Name())
			continue
		}
		for k := range a.Fields().Len() {
			x := a.Fields().Get(k)
			y := b.Fields().ByNumber(x.Number())
			if y == nil || x.Kind() != y.Kind() || x.Cardinality() != y.Cardinality() || foreign(x) != foreign(y) {
				t.Errorf("%s.%s differs", a.Name(), x.Name())
			}
		}
	}
}

// foreign is the type of a field that is a message.
func foreign(f protoreflect.FieldDescriptor) protoreflect.FullName {
	if f.Message() == nil || f.IsMap() {
		return ""
	}
	return f.Message().FullName()
}

// TestInfo holds that containerd understands what the runtime says of itself.
func TestInfo(t *testing.T) {
	info, err := manager{}.Info(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := typeurl.UnmarshalAny(info.Features)
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := v.(*features.Features); !ok || !slices.Contains(f.MountOptions, "rro") || !*f.Linux.MountExtensions.IDMap.Enabled {
		t.Errorf("%s: %+v", info.Features.TypeUrl, v)
	}
}

func TestPropagation(t *testing.T) {
	for option, refused := range map[string]bool{"rprivate": false, "rslave": false, "rshared": true, "shared": true} {
		err := checkPropagation([]specs.Mount{{Destination: "/a"}, {Destination: "/b", Options: []string{"rbind", option}}})
		if refused != (err != nil) || err != nil && !strings.Contains(err.Error(), "mounts[1] (/b): mountPropagation: Bidirectional") {
			t.Errorf("%s: %v", option, err)
		}
	}
}

func TestPodLimits(t *testing.T) {
	r, err := podLimits(map[string]string{
		"io.kubernetes.cri.sandbox-memory": "268435456", "io.kubernetes.cri.sandbox-cpu-quota": "150000", "io.kubernetes.cri.sandbox-cpu-period": "100000",
	})
	if err != nil || *r.Memory.Limit != 256<<20 || *r.CPU.Quota != 150000 || *r.CPU.Period != 100000 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := podLimits(nil); err != nil || r.Memory.Limit != nil || r.CPU.Quota != nil {
		t.Errorf("without annotations: %+v, %v", r, err)
	}
	if _, err := podLimits(map[string]string{"io.kubernetes.cri.sandbox-memory": "much"}); err == nil || !strings.Contains(err.Error(), "sandbox-memory") {
		t.Errorf("a bad number: %v", err)
	}
}

func TestHostNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		net bundle.Namespace
		ok  bool
	}{
		"none":       {bundle.Namespace{}, false},
		"new":        {bundle.Namespace{New: true}, true},
		"by path":    {bundle.Namespace{Path: "/run/netns/pod"}, true},
		"the host's": {bundle.Namespace{Path: "/proc/self/ns/net"}, false},
	} {
		if err := checkNetwork(&bundle.Plan{Net: c.net}); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMetrics(t *testing.T) {
	s := &agent.StatsResponse{MemoryBytes: 1 << 20, CpuUsageUs: 5, CpuUserUs: 3, CpuSystemUs: 2, Pids: 4, OomKills: 1, MemoryStat: map[string]uint64{"inactive_file": 7, "anon": 8}}
	one := metrics(s, false).(*v1.Metrics)
	if one.Memory.Usage.Usage != 1<<20 || one.Memory.Usage.Limit != noLimit || one.Memory.TotalInactiveFile != 7 || one.CPU.Usage.Total != 5000 || one.Pids.Current != 4 {
		t.Errorf("version 1: %v", one)
	}
	two := metrics(s, true).(*v2.Metrics)
	if two.Memory.Usage != 1<<20 || two.Memory.InactiveFile != 7 || two.CPU.UsageUsec != 5 || two.Pids.Current != 4 || two.MemoryEvents.OomKill != 1 {
		t.Errorf("version 2: %v", two)
	}
}

// TestLogger has a program take a process's output.
func TestLogger(t *testing.T) {
	program, file := filepath.Join(t.TempDir(), "logger"), filepath.Join(t.TempDir(), "log")
	script := "#!/bin/sh\nexec 5>&-\n{ echo $1 $2 $CONTAINER_NAMESPACE/$CONTAINER_ID; cat <&3; cat <&4; echo end; } >" + file + "\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	io := stdio{stdout: "binary://" + program + "?key=value", stderr: "binary://" + program + "?key=value"}
	streams, keeper, err := io.open("space", "name")
	if err != nil || keeper != nil || streams.Stdin != nil {
		t.Fatalf("%+v, %v, %v", streams, keeper, err)
	}
	streams.Stdout.WriteString("out\n")
	streams.Stderr.WriteString("err\n")
	streams.Stdout.Close()
	streams.Stderr.Close()
	want := "key value space/name\nout\nerr\nend\n"
	var got []byte
	for end := time.Now().Add(10 * time.Second); string(got) != want && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got, _ = os.ReadFile(file)
	}
	if string(got) != want {
		t.Errorf("the logger has %q", got)
	}
	for _, uri := range []string{"binary:///nonesuch", "gopher://x"} {
		if _, _, err := (&stdio{stdout: uri}).open("space", "name"); err == nil {
			t.Errorf("%s was opened", uri)
		}
	}
}

// TestFIFOs has clients of a process's streams come and go.
func TestFIFOs(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"in", "out"} {
		if err := unix.Mkfifo(path(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := stdio{stdin: path("in"), stdout: path("out")}
	streams, keeper, err := s.open("space", "name")
	if err != nil {
		t.Fatal(err)
	}
	defer streams.Stdin.Close()
	defer streams.Stdout.Close()
	for _, word := range []string{"first", "second"} {
		client, err := os.OpenFile(path("in"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		client.WriteString(word)
		client.Close()
		buf := make([]byte, 100)
		if n, err := streams.Stdin.Read(buf); err != nil || string(buf[:n]) != word {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		streams.Stdout.WriteString(word) // before anybody reads
		reader, err := os.OpenFile(path("out"), os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := reader.Read(buf); err != nil || string(buf[:n]) != word {
			t.Errorf("the client read %q, %v", buf[:n], err)
		}
		reader.Close()
	}
	keeper.Close()
	if n, err := streams.Stdin.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the input was closed: %d, %v", n, err)
	}
}

// TestInputEndsFirst has a client say that the input has ended while the process is being started.
func TestInputEndsFirst(t *testing.T) {
	name := filepath.Join(t.TempDir(), "in")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	p := new(process)
	streams, keeper, err := (&stdio{stdin: name}).open("space", "name")
	if err != nil {
		t.Fatal(err)
	}
	defer streams.Stdin.Close()
	if err := os.WriteFile(name, []byte("word"), 0); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.closeInput()
	p.mu.Unlock()
	p.keep(keeper)
	late := time.AfterFunc(10*time.Second, func() {
		t.Error("the input did not end")
		keeper.Close()
	})
	defer late.Stop()
	if got, err := io.ReadAll(streams.Stdin); string(got) != "word" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestJoins(t *testing.T) {
	one, two := newThread(), newThread()
	defer one.release()
	defer two.release()
	if one.id == two.id || one.id == uint32(os.Getpid()) {
		t.Errorf("ids %d, %d of process %d", one.id, two.id, os.Getpid())
	}
	others := map[string]uint32{"one": one.id, "two": two.id}
	g := &ground{pod: pod.New(nil, "")}
	path := func(pid uint32, name string) string { return filepath.Join("/proc", uintString(pid), "ns", name) }
	r := new(pod.CreateRequest)
	err := g.joins([]specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: path(two.id, "pid")}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/run/netns/x"}}, others, r)
	if err != nil || r.JoinPID != "two" || r.JoinIPC != "" || r.SharePID {
		t.Errorf("%+v, %v", r, err)
	}
	// The machine, here none yet, has the id 0.
	r = new(pod.CreateRequest)
	err = g.joins([]specs.LinuxNamespace{{Type: specs.IPCNamespace, Path: path(0, "ipc")}, {Type: specs.UTSNamespace, Path: path(0, "uts")}, {Type: specs.PIDNamespace, Path: path(0, "pid")}}, others, r)
	if err != nil || !r.ShareIPC || !r.ShareUTS || !r.SharePID {
		t.Errorf("%+v, %v", r, err)
	}
	if err := g.joins([]specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: path(1, "pid")}}, others, r); err == nil || !strings.Contains(err.Error(), "not one of this pod's") {
		t.Errorf("a process of the host's: %v", err)
	}
}

func uintString(n uint32) string {
	b, _ := json.Marshal(n)
	return string(b)
}

// TestStop cleans up what a killed shim's note names, and only with a note.
func TestStop(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left")
	bundle := filepath.Join(dir, "c")
	for _, d := range []string{left, filepath.Join(bundle, "rootfs")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.WithValue(context.Background(), containerd.OptsKey{}, containerd.Opts{BundlePath: bundle})
	if s, err := (manager{}).Stop(ctx, "c"); err != nil || s.ExitStatus != 137 {
		t.Errorf("without a note: %+v, %v", s, err)
	}
	note := filepath.Join(bundle, noteName)
	for _, c := range []struct {
		text string
		ok   bool
	}{{`{"pid":-1}`, false}, {"{", false}, {`{"pid":999999999,"dir":"` + left + `"}`, true}} {
		if err := os.WriteFile(note, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := cleanGround(note, new(containerd.StopStatus)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.text, err)
		}
		if _, gone := os.Stat(left); c.ok != os.IsNotExist(gone) {
			t.Errorf("%s: the pod's directory: %v", c.text, gone)
		}
	}
}

// TestSandboxConfig makes of what CRI hands over what the pod's machine and containers get.
func TestSandboxConfig(t *testing.T) {
	asked := &cri.PodSandboxConfig{
		Hostname: "pod", Annotations: map[string]string{"manis.accel": "tcg", "other": "x"},
		DnsConfig: &cri.DNSConfig{Servers: []string{"192.0.2.1", "192.0.2.2\nnameserver 192.0.2.3"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/pod1", Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 100 << 20},
		},
	}
	raw, err := proto.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	c, err := readSandbox(&anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: raw})
	if err != nil {
		t.Fatal(err)
	}
	s := c.spec("id", "/run/netns/x")
	role := roleOf(s.Annotations)
	if s.Hostname != "pod" || s.Linux.CgroupsPath != "/kubepods/pod1/id" || s.Linux.Sysctl["net.ipv4.ip_forward"] != "1" || !role.pause || role.sandbox != "id" ||
		s.Annotations["io.kubernetes.cri.sandbox-memory"] != "104857600" || s.Annotations["manis.accel"] != "tcg" || s.Annotations["other"] != "" {
		t.Errorf("%+v %+v", s, s.Linux)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	top := t.TempDir()
	if err := os.Mkdir(filepath.Join(top, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Parse(top, text)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := machineOf(b); err != nil || m.Resources.MemoryBytes != 100<<20 || m.Hostname != "pod" || m.Netns != "/run/netns/x" {
		t.Errorf("%+v, %v", m, err)
	}
	if conf, err := c.resolvConf(); err != nil || conf != "nameserver 192.0.2.1\nnameserver 192.0.2.2 nameserver 192.0.2.3\nsearch a b\noptions ndots:5\n" {
		t.Errorf("resolv.conf: %q, %v", conf, err)
	}
	asked.Linux.CgroupParent = "/kubepods.slice/kubepods-pod1.slice"
	if group := (sandboxConfig{asked}).group("id"); group != "kubepods-pod1.slice:cri-containerd:id" {
		t.Errorf("control group %s", group)
	}
	for name, options := range map[string]*anypb.Any{
		"another type": {TypeUrl: "x.Other"}, "nonsense": {TypeUrl: "runtime.v1.PodSandboxConfig", Value: []byte{0xff}},
	} {
		if _, err := readSandbox(options); err == nil {
			t.Errorf("%s was taken for a configuration", name)
		}
	}
	spec := &specs.Spec{Mounts: []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: "/own"}, {Destination: "/dev/shm", Type: "tmpfs"}}}
	mountFiles(spec, []bundleFile{{"/a", "/etc/hosts"}, {"/b", "/etc/hostname"}, {"/c", "/dev/shm"}})
	if len(spec.Mounts) != 3 || spec.Mounts[0].Source != "/own" || spec.Mounts[1].Source != "/c" || spec.Mounts[2].Source != "/b" {
		t.Errorf("mounts %+v", spec.Mounts)
	}
}

// TestShare reads limits; what an update does not name stays.
func TestShare(t *testing.T) {
	limit, none, quota, unlimited := int64(1<<20), int64(-1), int64(150000), int64(-1)
	period := uint64(50000)
	before := share{memoryBytes: 7, milliCPUs: 8}
	for name, c := range map[string]struct {
		r    *specs.LinuxResources
		want share
	}{
		"nothing":   {nil, before},
		"others":    {&specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}}, before},
		"memory":    {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}, share{1 << 20, 8}},
		"no memory": {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &none}}, share{0, 8}},
		"quota":     {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}}, share{7, 1500}},
		"period":    {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}, share{7, 3000}},
		"no quota":  {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &unlimited}}, share{7, 0}},
	} {
		if got := shareOf(c.r, before); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// TestSizeFor adds up what the containers of a pod are limited to.
func TestSizeFor(t *testing.T) {
	running := func(s share) *container {
		return &container{share: s, init: &process{status: tasktypes.Status_RUNNING}}
	}
	one, two := running(share{256 << 20, 1500}), running(share{128 << 20, 600})
	ended := running(share{8 << 30, 9000})
	ended.init.status = tasktypes.Status_STOPPED
	pause := running(share{})
	pause.pause = true
	s := &service{containers: map[string]*container{"one": one, "two": two, "ended": ended, "pause": pause}}
	size, limited, err := s.sizeFor(one, share{512 << 20, 500})
	if err != nil {
		t.Fatal(err)
	}
	if size.VCPUs != 2 || size.MemoryBytes < 640<<20 || size.MemoryBytes > 1<<30 || !limited {
		t.Errorf("%d processors and %d MiB, all limited: %v", size.VCPUs, size.MemoryBytes>>20, limited)
	}
	two.share = share{}
	if size, limited, err = s.sizeFor(one, share{512 << 20, 0}); err != nil || size.VCPUs != 0 || size.MemoryBytes < 512<<20 || limited {
		t.Errorf("beside one without limits: %d processors and %d MiB, all limited: %v, %v", size.VCPUs, size.MemoryBytes>>20, limited, err)
	}
	if size, _, err := s.sizeFor(one, share{1 << 20, 0}); err != nil || size.MemoryBytes == 0 {
		t.Errorf("1 MiB: %d bytes, %v", size.MemoryBytes, err)
	}
}
