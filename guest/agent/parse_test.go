package agent

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	api "manis/api/agent"
)

const passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\n+nis\n\nbroken\nbad:x:-1:0::/:\nmax:x:4294967295:0::/:\nuser:x:1000:1000::/home/user:/bin/sh\n77:x:5:6::/seven:\nshort:x:8:9\n"
const group = "root:x:0:\nuser:x:1000:\naudio:x:29:user,root\nwheel:x:10:user\nbad:x:x:user\nnocolon\n1000:x:31:\n"

func TestLookUp(t *testing.T) {
	for name, c := range map[string]struct {
		process *api.Process
		want    identity
		err     string
	}{
		"nothing":              {&api.Process{}, identity{home: "/root"}, ""},
		"ids":                  {&api.Process{Uid: 1000, Gid: 5, AdditionalGids: []uint32{9, 7, 9}}, identity{uid: 1000, gid: 5, groups: []uint32{7, 9}, home: "/home/user"}, ""},
		"name":                 {&api.Process{User: "user"}, identity{uid: 1000, gid: 1000, groups: []uint32{10, 29}, home: "/home/user"}, ""},
		"name that is digits":  {&api.Process{User: "77"}, identity{uid: 5, gid: 6, home: "/seven"}, ""},
		"group that is digits": {&api.Process{User: "user:1000"}, identity{uid: 1000, gid: 31, home: "/home/user"}, ""},
		"unknown number":       {&api.Process{User: "12"}, identity{uid: 12, home: "/"}, ""},
		"only a group":         {&api.Process{User: ":audio"}, identity{gid: 29, home: "/root"}, ""},
		"few fields":           {&api.Process{User: "short"}, identity{uid: 8, gid: 9, home: "/"}, ""},
		"added":                {&api.Process{AdditionalGroups: []string{"audio", "5"}}, identity{groups: []uint32{5, 29}, home: "/root"}, ""},
		"unknown":              {&api.Process{User: "nobody"}, identity{}, "unable to find user nobody"},
		"negative":             {&api.Process{User: "bad"}, identity{}, "unable to find user bad"},
		"reserved":             {&api.Process{User: "max"}, identity{}, "unable to find user max"},
		"unknown group":        {&api.Process{User: "user:none"}, identity{}, "unable to find group none"},
		"unknown added":        {&api.Process{AdditionalGroups: []string{"none"}}, identity{}, "unable to find group none"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := lookUp(c.process, passwd, group)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || got.uid != c.want.uid || got.gid != c.want.gid || got.home != c.want.home || !slices.Equal(got.groups, c.want.groups) {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func FuzzLookUp(f *testing.F) {
	f.Add("user:audio", passwd, group)
	f.Add("0", ":::::\n::", "a:b:c:d\n")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		id, err := lookUp(&api.Process{User: user, AdditionalGroups: []string{user}}, passwd, group)
		if err != nil {
			return
		}
		if id.uid == 1<<32-1 || id.gid == 1<<32-1 || len(id.groups) > maxGroups || id.home == "" {
			t.Errorf("user %q: %+v", user, id)
		}
	})
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"kernel.msgmax":           "kernel/msgmax",
		"net.ipv4.conf.eth0/1.rp": "net/ipv4/conf/eth0.1/rp",
		"net/ipv4/conf/eth0.1/rp": "net/ipv4/conf/eth0.1/rp",
		"kernel":                  "",
		"":                        "",
		"..":                      "",
		"../../etc/passwd":        "",
		"net//ipv4":               "",
		"a.b..c":                  "",
		"a/../../b":               "",
		"a.//.b":                  "",
		"kernel.x\x00y":           "",
	} {
		got, ok := sysctlPath(key)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v; want %q", key, got, ok, want)
		}
	}
}

func FuzzSysctlPath(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/1.rp")
	f.Fuzz(func(t *testing.T, key string) {
		path, ok := sysctlPath(key)
		if ok && (strings.HasPrefix(path, "/") || slices.Contains(strings.Split(path, "/"), "..")) {
			t.Errorf("%q leads to %q", key, path)
		}
	})
}

func TestParseMountOptions(t *testing.T) {
	for name, c := range map[string]struct {
		options []string
		want    mountOptions
	}{
		"none":        {nil, mountOptions{}},
		"attributes":  {[]string{"ro", "nosuid", "nodev", "noexec"}, mountOptions{set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}},
		"the last":    {[]string{"ro", "rw", "noexec", "exec", "noexec"}, mountOptions{set: unix.MOUNT_ATTR_NOEXEC, clear: unix.MOUNT_ATTR_RDONLY}},
		"atime":       {[]string{"noatime", "strictatime"}, mountOptions{set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME}},
		"relatime":    {[]string{"relatime"}, mountOptions{clear: unix.MOUNT_ATTR__ATIME}},
		"below":       {[]string{"rbind", "rro", "rnosuid"}, mountOptions{bind: true, recursive: true, setBelow: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}},
		"propagation": {[]string{"bind", "rslave"}, mountOptions{bind: true, propagation: unix.MS_SLAVE | unix.MS_REC}},
		"data":        {[]string{"size=1m", "mode=755", "defaults"}, mountOptions{data: []string{"size=1m", "mode=755"}}},
		"own":         {[]string{"tmpcopyup", "subdir=_data"}, mountOptions{copyUp: true, subdir: "_data"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseMountOptions(c.options)
			if err != nil || !slices.Equal(got.data, c.want.data) {
				t.Fatalf("got %+v, %v", got, err)
			}
			got.data, c.want.data = nil, nil
			if got.set != c.want.set || got.clear != c.want.clear || got.setBelow != c.want.setBelow || got.clearBelow != c.want.clearBelow ||
				got.propagation != c.want.propagation || got.bind != c.want.bind || got.recursive != c.want.recursive || got.copyUp != c.want.copyUp || got.subdir != c.want.subdir {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	if _, err := parseMountOptions(make([]string, maxMountOptions+1)); err == nil {
		t.Error("any number of options is accepted")
	}
}

func TestParseStat(t *testing.T) {
	line := "42 (we (ird) na) me) S 7 42 42 34817 42 4194304 100 0 0 0 150 50 0 0 20 0 1 0 1000 0 0 0"
	p, ok := parseStat(line, 5e9)
	if !ok || p.Ppid != 7 || p.CpuMs != 2000 || p.StartedUnixNs != 15e9 || p.Tty != "pts/1" || p.Command != "[we (ird) na) me]" {
		t.Errorf("got %v, %v", p, ok)
	}
	for _, bad := range []string{"", "1", "1 (", "1 )(", "1 (x) S 1"} {
		if _, ok := parseStat(bad, 0); ok {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzProcFiles(f *testing.F) {
	f.Add("42 (x) S 7 42 42 34817 42 4194304 100 0 0 0 150 50 0 0 20 0 1 0 1000 0 0 0", "Uid:\t1 2 3 4\nNSpid:\t5 1\n", "254:0 rbytes=1 wbytes=2\n", " eth0: 1 2 3 4 5 6 7 8 9 10 11\n")
	f.Fuzz(func(t *testing.T, stat, status, io, network string) {
		parseStat(stat, 0)
		parseStatus(status, new(api.ProcessInfo))
		sumIO(io, map[string]bool{"254:0": true})
		sumNetwork(network, new(api.StatsResponse))
		parseUevent(status)
	})
}

func TestSums(t *testing.T) {
	r, w := sumIO("254:0 rbytes=10 wbytes=20 rios=1\n253:0 rbytes=10 wbytes=20\n254:16 rbytes=1 wbytes=2\nnonsense\n", map[string]bool{"254:0": true, "254:16": true})
	if r != 11 || w != 22 {
		t.Errorf("read %d, written %d", r, w)
	}
	s := new(api.StatsResponse)
	sumNetwork("Inter-| head\n face | head\n  lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n eth0: 100 2 0 0 0 0 0 0 200 3 0 0 0 0 0 0\n", s)
	if s.RxBytes != 100 || s.RxPackets != 2 || s.TxBytes != 200 || s.TxPackets != 3 {
		t.Errorf("got %v", s)
	}
}

func TestLimitsOfCgroups(t *testing.T) {
	for name, c := range map[string]struct {
		resources *api.Resources
		explicit  bool
		want      string
		err       string
	}{
		"none":         {nil, false, "", ""},
		"zero at once": {&api.Resources{}, false, "", ""},
		"zero later":   {&api.Resources{}, true, "memory.swap.max=max memory.max=max memory.low=0 cpu.max=max 100000 cpu.weight=100 pids.max=max", ""},
		"memory":       {&api.Resources{MemoryBytes: 1 << 20, MemorySwapBytes: 3 << 20}, false, "memory.swap.max=2097152 memory.max=1048576", ""},
		"cpu":          {&api.Resources{CpuQuotaUs: 20000}, false, "cpu.max=20000 100000", ""},
		"less swap":    {&api.Resources{MemoryBytes: 2 << 20, MemorySwapBytes: 1 << 20}, false, "", "less than memory"},
		"tiny":         {&api.Resources{MemoryBytes: 1}, false, "", "too small"},
		"procs":        {&api.Resources{Unified: map[string]string{"cgroup.procs": "1"}}, false, "", "not one of a controller"},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := limits(c.resources, c.explicit)
			var got []string
			for _, l := range list {
				got = append(got, l.file+"="+l.value)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v", err)
				}
			} else if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// decide runs a device program as the kernel would; it knows only what the assembler
// can write.
func decide(t testing.TB, p bpfProgram, kind, access, major, minor uint32) bool {
	t.Helper()
	var r [11]uint64
	ctx := map[int16]uint64{devAccessType: uint64(access<<16 | kind), devMajor: uint64(major), devMinor: uint64(minor)}
	for pc, steps := 0, 0; ; pc, steps = pc+1, steps+1 {
		if pc*8 >= len(p) || steps > len(p) {
			t.Fatal("the program does not end")
		}
		i := p[pc*8 : pc*8+8]
		op, dst, src := i[0], i[1]&15, i[1]>>4
		off, imm := int16(binary.NativeEndian.Uint16(i[2:])), int32(binary.NativeEndian.Uint32(i[4:]))
		switch op {
		case unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W:
			r[dst] = ctx[off]
		case unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X:
			r[dst] = r[src]
		case unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K:
			r[dst] = uint64(int64(imm))
		case unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K:
			r[dst] &= uint64(int64(imm))
		case unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K:
			r[dst] >>= uint(imm)
		case unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K:
			if r[dst] != uint64(int64(imm)) {
				pc += int(off)
			}
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if r[dst] == uint64(int64(imm)) {
				pc += int(off)
			}
		case unix.BPF_JMP | unix.BPF_EXIT:
			return r[0] != 0
		default:
			t.Fatalf("instruction %#x", op)
		}
	}
}

func TestDeviceProgram(t *testing.T) {
	rules := append(defaultDeviceRules(),
		&api.DeviceRule{Allow: true, Type: "b", Major: 8, Minor: 0, Access: "r"},
		&api.DeviceRule{Type: "c", Major: 244, Minor: -1, Access: "rwm"})
	p, err := deviceProgram(rules)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		kind, access, major, minor uint32
		want                       bool
	}{
		"read null":           {devTypeChar, devRead, 1, 3, true},
		"write null":          {devTypeChar, devWrite, 1, 3, true},
		"open null for both":  {devTypeChar, devRead | devWrite, 1, 3, true},
		"read mem":            {devTypeChar, devRead, 1, 1, false},
		"make mem":            {devTypeChar, devMknod, 1, 1, true},
		"block like null":     {devTypeBlock, devRead, 1, 3, false},
		"terminal":            {devTypeChar, devRead | devWrite, 136, 77, true},
		"read disk":           {devTypeBlock, devRead, 8, 0, true},
		"write disk":          {devTypeBlock, devWrite, 8, 0, false},
		"read and write disk": {devTypeBlock, devRead | devWrite, 8, 0, false},
		"other disk":          {devTypeBlock, devRead, 8, 1, false},
		"make the port":       {devTypeChar, devMknod, 244, 1, false},
		"open the port":       {devTypeChar, devRead, 244, 1, false},
	} {
		if got := decide(t, p, c.kind, c.access, c.major, c.minor); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, rules := range map[string][]*api.DeviceRule{
		"type":   {{Type: "z"}},
		"access": {{Type: "c", Access: "x"}},
		"number": {{Type: "c", Major: 1 << 40}},
		"many":   make([]*api.DeviceRule, maxDeviceRules+1),
	} {
		if _, err := deviceProgram(rules); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLookPath(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		env  []string
		want string
	}{
		"path":         {"/bin/sh", nil, "/bin/sh"},
		"relative":     {"./a", []string{"PATH=/x"}, "./a"},
		"name":         {"a", []string{"PATH=/x:/y/"}, "/x/a /y/a"},
		"empty parts":  {"a", []string{"PATH=:/x:"}, "./a /x/a ./a"},
		"the last one": {"a", []string{"PATH=/x", "PATH=/y"}, "/y/a"},
		"no PATH":      {"a", nil, "/usr/local/sbin/a /usr/local/bin/a /usr/sbin/a /usr/bin/a /sbin/a /bin/a"},
		"empty":        {"", nil, ""},
	} {
		if got := strings.Join(lookPath(c.file, c.env), " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestParseNetwork(t *testing.T) {
	for name, n := range map[string]*api.Network{
		"mac":          {Mac: "zz"},
		"long mac":     {Mac: "01:02:03:04:05:06:07:08"},
		"address":      {Addresses: []string{"10.0.0.1"}},
		"gateway":      {Gateways: []string{"10.0.0.0/8"}},
		"route":        {Routes: []*api.Route{{Destination: "10.0.0.1"}}},
		"mixed family": {Routes: []*api.Route{{Destination: "10.0.0.0/8", Gateway: "::1"}}},
	} {
		if _, err := parseNetwork(n); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	p, err := parseNetwork(&api.Network{Addresses: []string{"10.0.0.1/24", "fd00::1/64"}})
	if err != nil {
		t.Fatal(err)
	}
	for gateway, want := range map[string]bool{"10.0.0.9": true, "10.0.1.9": false, "fd00::9": true, "fe80::1": true, "fd01::1": false} {
		n, err := parseNetwork(&api.Network{Gateways: []string{gateway}})
		if err != nil || p.onLink(n.gateways[0]) != want {
			t.Errorf("%s on link: want %v", gateway, want)
		}
	}
}

func TestVerityTable(t *testing.T) {
	good := func() *api.Verity {
		return &api.Verity{RootHash: strings.Repeat("ab", 32), Salt: "00ff", DataBlockBytes: 4096, HashBlockBytes: 4096, DataBlocks: 10, HashOffset: 40960}
	}
	line, sectors, err := verityTable("/dev/vda", good())
	want := "1 /dev/vda /dev/vda 4096 4096 10 10 " + verityHash() + " " + strings.Repeat("ab", 32) + " 00ff"
	if err != nil || line != want || sectors != 80 {
		t.Errorf("got %q, %d, %v", line, sectors, err)
	}
	for name, change := range map[string]func(v *api.Verity){
		"hash with words": func(v *api.Verity) { v.RootHash = strings.Repeat("ab", 31) + " 1" },
		"salt with words": func(v *api.Verity) { v.Salt = "ab 1 ignore_corruption" },
		"no blocks":       func(v *api.Verity) { v.DataBlocks = 0 },
		"block size":      func(v *api.Verity) { v.HashBlockBytes = 0 },
	} {
		v := good()
		change(v)
		if _, _, err := verityTable("/dev/vda", v); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLayersOfARoot(t *testing.T) {
	for name, r := range map[string]*api.RootFS{
		"image and layer":    {Image: "binds/0.image", Layer: "binds/0.layer"},
		"parts and layer":    {Disk: "raw1", Parts: []uint64{4096, 512}, Layer: "binds/0.layer"},
		"parts and a disk":   {Disk: "raw1", Parts: []uint64{4096}, ScratchDisk: "raw2"},
		"as many as can be":  {Disk: "raw1", Parts: slices.Repeat([]uint64{4096}, maxParts), ScratchDisk: "raw2"},
		"of the utmost size": {Disk: "raw1", Parts: []uint64{1 << 50}, ScratchDisk: "raw2"},
	} {
		if err := checkLayers(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, r := range map[string]*api.RootFS{
		"nothing":             {},
		"no layer":            {Image: "binds/0.image"},
		"no image":            {Layer: "binds/0.layer"},
		"image and disk":      {Image: "binds/0.image", Layer: "binds/0.layer", Disk: "raw1"},
		"image and parts":     {Image: "binds/0.image", Layer: "binds/0.layer", Disk: "raw1", Parts: []uint64{4096}},
		"parts without disk":  {Parts: []uint64{4096}, Layer: "binds/0.layer"},
		"parts alone":         {Disk: "raw1", Parts: []uint64{4096}},
		"two writable layers": {Disk: "raw1", Parts: []uint64{4096}, Layer: "binds/0.layer", ScratchDisk: "raw2"},
		"an empty part":       {Disk: "raw1", Parts: []uint64{0}, ScratchDisk: "raw2"},
		"part of a sector":    {Disk: "raw1", Parts: []uint64{700}, ScratchDisk: "raw2"},
		"a sum that wraps":    {Disk: "raw1", Parts: []uint64{1<<63 + 512}, ScratchDisk: "raw2"},
		"too many":            {Disk: "raw1", Parts: slices.Repeat([]uint64{4096}, maxParts+1), ScratchDisk: "raw2"},
		"a check":             {Disk: "raw1", Parts: []uint64{4096}, ScratchDisk: "raw2", Verity: &api.Verity{}},
		"memory":              {Disk: "raw1", Parts: []uint64{4096}, ScratchDisk: "raw2", TmpfsBytes: 1},
	} {
		if err := checkLayers(r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
