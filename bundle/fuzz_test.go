package bundle

import (
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever a config.json holds, it is a plan within the agent's bounds or an error.
func FuzzPlan(f *testing.F) {
	podman, err := os.ReadFile("testdata/podman.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(podman)
	f.Add([]byte(minimal))
	for _, over := range []string{
		`{"mounts":[{"destination":"/dev","type":"tmpfs","options":["size=1m","ro"]},{"destination":"/x","type":"bind","source":"a","options":["rbind","rro"]}]}`,
		`{"linux":{"resources":{"memory":{"limit":9000000,"swap":-1},"cpu":{"quota":5000,"cpus":"0-1"},"unified":{"a.b":"c"},"hugepageLimits":[{"pageSize":"2MB"}]},"devices":[{"path":"/d","type":"c","major":1,"minor":3}]}}`,
		`{"linux":{"namespaces":[{"type":"user"},{"type":"time"}],"uidMappings":[{"size":1}],"gidMappings":[{"size":1}],"timeOffsets":{"boottime":{"secs":1}},"sysctl":{"net.a":"1"}}}`,
		`{"process":{"scheduler":{"policy":"SCHED_RR","priority":1},"rlimits":[{"type":"RLIMIT_CPU"}],"execCPUAffinity":{"final":"0-7"}},"hooks":{"startContainer":[{"path":"/x"}]}}`,
	} {
		f.Add(with(f, over))
	}
	h := fakeHost(nil)
	h.stat = func(name string) (os.FileInfo, error) {
		return node{mode: []fs.FileMode{fs.ModeDir, 0, fs.ModeDevice | fs.ModeCharDevice}[len(name)%3], rdev: 0x103}, nil
	}
	h.filesystem = func(name string) (int64, uint64, error) {
		return []int64{0, unix.TMPFS_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.PROC_SUPER_MAGIC}[len(name)%4], uint64(len(name)), nil
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		b, err := Parse("/b", config)
		if err != nil {
			return
		}
		if b.Spec.Root != nil {
			// A name of this length is a directory's.
			b.Spec.Root.Path = "/abcde"
		}
		p, err := b.plan(Environment{}, h)
		b.Process(b.Spec.Process)
		if err != nil {
			return
		}
		c := p.Create
		if len(c.Process.Args) == 0 || len(c.Mounts) > maxMounts || len(c.Resources.DeviceRules) > 1024 || p.Resources.MilliCPUs > 4000 {
			t.Errorf("plan %v", c)
		}
		for _, m := range c.Mounts {
			if m.Destination == "/" || m.Destination[0] != '/' || len(m.Options) > 128 {
				t.Errorf("mount %v", m)
			}
		}
	})
}
