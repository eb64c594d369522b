package spec

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"manis/container"
)

func TestMachine(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for name, c := range map[string]struct {
		r       container.Resources
		host    uint64
		cpus    int
		memory  uint64
		vcpus   int
		problem string
	}{
		"default":               {container.Resources{}, 8 * gib, 8, 512 * mib, 2, ""},
		"default, small host":   {container.Resources{}, 301 * mib, 1, 300 * mib, 1, ""},
		"256 MiB":               {container.Resources{MemoryBytes: 256 * mib}, 8 * gib, 2, 352 * mib, 2, ""},
		"6 MiB":                 {container.Resources{MemoryBytes: 6 * mib}, 8 * gib, 2, 72 * mib, 2, ""},
		"1 byte more":           {container.Resources{MemoryBytes: 256*mib + 1}, 8 * gib, 2, 352 * mib, 2, ""},
		"more than the host":    {container.Resources{MemoryBytes: 64 * gib}, 8 * gib, 2, 8 * gib, 2, ""},
		"no sense at all":       {container.Resources{MemoryBytes: 1<<64 - 1}, 8 * gib, 2, 8 * gib, 2, ""},
		"half a CPU":            {container.Resources{MilliCPUs: 500}, 8 * gib, 8, 512 * mib, 1, ""},
		"two and a half":        {container.Resources{MilliCPUs: 2500}, 8 * gib, 8, 512 * mib, 3, ""},
		"all CPUs":              {container.Resources{MilliCPUs: 8000}, 8 * gib, 8, 512 * mib, 8, ""},
		"a set":                 {container.Resources{MilliCPUs: 1000, CPUSet: "0,2-4"}, 8 * gib, 8, 512 * mib, 5, ""},
		"too little":            {container.Resources{MemoryBytes: 6*mib - 1}, 8 * gib, 2, 0, 0, "minimum memory limit allowed is 6MB"},
		"tiny host":             {container.Resources{}, 64 * mib, 2, 0, 0, "the host has 64 MiB of memory, a virtual machine needs 70"},
		"too many CPUs":         {container.Resources{MilliCPUs: 2001}, 8 * gib, 2, 0, 0, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"},
		"set beyond the host":   {container.Resources{CPUSet: "0,2"}, 8 * gib, 2, 0, 0, "requested CPUs are not available - requested 0,2, available: 0-1"},
		"set that is no set":    {container.Resources{CPUSet: "0-"}, 8 * gib, 2, 0, 0, "invalid value 0- for cpuset cpus"},
		"set that runs back":    {container.Resources{CPUSet: "1-0"}, 8 * gib, 2, 0, 0, "invalid value 1-0 for cpuset cpus"},
		"set with large number": {container.Resources{CPUSet: "0-99999999"}, 8 * gib, 2, 0, 0, "invalid value 0-99999999 for cpuset cpus"},
	} {
		t.Run(name, func(t *testing.T) {
			memory, vcpus, err := machine(&c.r, c.host, c.cpus)
			if c.problem != "" {
				if err == nil || err.Error() != c.problem {
					t.Errorf("error %v, want %q", err, c.problem)
				}
				return
			}
			if err != nil || memory != c.memory || vcpus != c.vcpus {
				t.Errorf("%d MiB, %d CPUs, %v; want %d, %d", memory/mib, vcpus, err, c.memory/mib, c.vcpus)
			}
		})
	}
	if memory, vcpus, err := Machine(&container.Config{}); err != nil || memory == 0 || vcpus == 0 {
		t.Errorf("this host: %d, %d, %v", memory, vcpus, err)
	}
}

func TestSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"": unix.SIGTERM, "SIGTERM": unix.SIGTERM, "TERM": unix.SIGTERM, "term": unix.SIGTERM, "sigKill": unix.SIGKILL,
		"15": 15, "9": 9, "64": 64, "1": 1, "RTMIN": 34, "SIGRTMIN+3": 37, "rtmin+30": 64, "RTMAX": 64, "RTMAX-14": 50,
		"CHLD": unix.SIGCHLD, "CLD": unix.SIGCHLD, "IOT": unix.SIGABRT, "POLL": unix.SIGIO, "USR1": unix.SIGUSR1, "WINCH": unix.SIGWINCH, "QUIT": unix.SIGQUIT,
	} {
		if got, err := Signal(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, int(got), err, int(want))
		}
	}
	for _, text := range []string{"0", "65", "-1", "+9", "9x", "999999999999", "SIG", "SIGSIGTERM", "FOO", "RTMIN-1", "RTMIN+31", "RTMIN+", "RTMIN++3", "RTMAX+1", "RTMAX-31", "15 ", " "} {
		if got, err := Signal(text); err == nil || err.Error() != "invalid signal: "+text {
			t.Errorf("%q: %d, %v", text, int(got), err)
		}
	}
}

func FuzzSignal(f *testing.F) {
	for _, s := range []string{"TERM", "15", "RTMIN+3", "RTMAX-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if sig, err := Signal(s); err == nil && (sig < 1 || sig > 64) {
			t.Errorf("%q is signal %d", s, int(sig))
		}
	})
}

func FuzzMountOptionsAndNames(f *testing.F) {
	f.Add("size=64m,exec", "net/ipv4/conf/eth0.1/forwarding", "0-1,3")
	f.Add("mode=1777", "kernel.shmmax", "1")
	f.Fuzz(func(t *testing.T, options, sysctl, set string) {
		if list, err := tmpfsOptions([]string{options}); err == nil {
			for _, o := range list {
				if strings.ContainsAny(o, ",\x00") {
					t.Errorf("%q gives the option %q", options, o)
				}
			}
		}
		if name, err := sysctlName(sysctl); err == nil {
			path := strings.NewReplacer(".", "/", "/", ".").Replace(name)
			for part := range strings.SplitSeq(path, "/") {
				if part == "" || part == "." || part == ".." {
					t.Errorf("%q leads to %q", sysctl, path)
				}
			}
		}
		if n, err := highestCPU(set); err == nil && (n < -1 || n > 65535) {
			t.Errorf("%q has CPU %d", set, n)
		}
	})
}

func TestLargest(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		memory   uint64
		vcpus    int
		host     uint64
		cpus     int
		want     uint64
		wantCPUs int
	}{
		"small host":         {gib / 2, 1, 24*gib - 12345, 2, 32 * gib, 2},
		"a power of two":     {gib / 2, 1, 16 * gib, 2, 16 * gib, 2},
		"many processors":    {gib / 2, 2, 64 * gib, 64, 64 * gib, 4},
		"more at the start":  {gib / 2, 9, 64 * gib, 64, 64 * gib, 9},
		"large host":         {gib / 2, 1, 2048 * gib, 4, 512 * gib, 4},
		"large at the start": {700 * gib, 1, 2048 * gib, 4, 700 * gib, 4},
	} {
		if memory, cpus := largest(c.memory, c.vcpus, c.host, c.cpus); memory != c.want || cpus != c.wantCPUs {
			t.Errorf("%s: %d bytes and %d processors, want %d and %d", name, memory, cpus, c.want, c.wantCPUs)
		}
	}
}
