package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"manis/api/agent"
)

func request() *agent.CreateContainerRequest {
	return &agent.CreateContainerRequest{
		Id: "c", NoDefaultMounts: true, Hostname: "h",
		Rootfs:    &agent.RootFS{Disk: "root", Verity: &agent.Verity{RootHash: "aa", Salt: "bb", Algorithm: "sha256", DataBlocks: 3}},
		Mounts:    []*agent.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid"}}},
		Files:     []*agent.File{{Path: "/etc/hosts", Content: []byte("x"), Mode: 0o644}},
		Resources: &agent.Resources{Pids: 10},
		Sysctls:   map[string]string{"a": "b"},
		Process: &agent.Process{
			Args: []string{"sh", "-c", "true"}, Env: []string{"A=1", "B=2"}, Cwd: "/", User: "1:1",
			Capabilities: &agent.Capabilities{Bounding: []string{"CAP_CHOWN"}},
			Rlimits:      []*agent.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}, Seccomp: []byte{1},
		},
	}
}

func manifest(t *testing.T) *Manifest {
	c, err := Of(request(), false)
	if err != nil {
		t.Fatal(err)
	}
	return &Manifest{Format: Format, Version: 1, Expires: time.Unix(2e9, 0).UTC(), Network: "none", Calls: []string{}, Containers: []Container{*c}}
}

func TestMatchNamesWhatDiffers(t *testing.T) {
	m := manifest(t)
	for name, c := range map[string]struct {
		change func(r *agent.CreateContainerRequest)
		want   string
	}{
		"nothing":          {func(*agent.CreateContainerRequest) {}, ""},
		"another handle":   {func(r *agent.CreateContainerRequest) { r.Id, r.Rootfs.Disk = "d", "other" }, ""},
		"argument":         {func(r *agent.CreateContainerRequest) { r.Process.Args[2] = "false" }, `containers[0].args[2]: the manifest says "true", the request "false"`},
		"more arguments":   {func(r *agent.CreateContainerRequest) { r.Process.Args = append(r.Process.Args, "x") }, `containers[0].args[3]`},
		"missing variable": {func(r *agent.CreateContainerRequest) { r.Process.Env = r.Process.Env[:1] }, `containers[0].env[1]: the manifest says "B=2", the request nothing`},
		"changed variable": {func(r *agent.CreateContainerRequest) { r.Process.Env[0] = "A=3" }, `containers[0].env[0]`},
		"user":             {func(r *agent.CreateContainerRequest) { r.Process.User = "0" }, `containers[0].user`},
		"root":             {func(r *agent.CreateContainerRequest) { r.Rootfs.Verity.RootHash = "cc" }, `containers[0].root.hash`},
		"hash tree":        {func(r *agent.CreateContainerRequest) { r.Rootfs.Verity.HashOffset = 5 }, `containers[0].root.hashOffset`},
		"capability":       {func(r *agent.CreateContainerRequest) { r.Process.Capabilities.Effective = []string{"CAP_SYS_ADMIN"} }, `containers[0].capabilities.effective[0]`},
		"mount":            {func(r *agent.CreateContainerRequest) { r.Mounts[0].Destination = "/x" }, `containers[0].mounts[0].destination`},
		"mount option":     {func(r *agent.CreateContainerRequest) { r.Mounts[0].Options = nil }, `containers[0].mounts[0].options[0]`},
		"file's content":   {func(r *agent.CreateContainerRequest) { r.Files[0].Content = []byte("y") }, `containers[0].files[0].sha256`},
		"system calls":     {func(r *agent.CreateContainerRequest) { r.Process.Seccomp = nil }, `containers[0].seccomp`},
		"kernel parameter": {func(r *agent.CreateContainerRequest) { r.Sysctls["a"] = "c" }, `containers[0].sysctls[a]`},
		"share":            {func(r *agent.CreateContainerRequest) { r.Mounts[0].Type = "share" }, `mounts[0].type`},
		"disk":             {func(r *agent.CreateContainerRequest) { r.Rootfs.ScratchDisk = "scratch" }, `rootfs.scratch_disk`},
		"encrypted disk": {func(r *agent.CreateContainerRequest) { r.Rootfs.ScratchDisk, r.Rootfs.SealedBytes = "scratch", 1<<26 },
			`containers[0].root.diskBytes: the manifest says 0, the request 67108864`},
		"terminal":       {func(r *agent.CreateContainerRequest) { r.Process.Terminal = true }, `process.terminal`},
		"input":          {func(r *agent.CreateContainerRequest) { r.Process.Stdin = 1 }, `process.stdin`},
		"output":         {func(r *agent.CreateContainerRequest) { r.Process.Stdout = 1 }, `"logs"`},
		"unchecked root": {func(r *agent.CreateContainerRequest) { r.Rootfs.Verity = nil }, `rootfs.verity`},
		"hook":           {func(r *agent.CreateContainerRequest) { r.StartHooks = []*agent.Hook{{Path: "/x"}} }, `start_hooks`},
		"unknown member": {func(r *agent.CreateContainerRequest) { r.Process.ProtoReflect().SetUnknown([]byte{0xa0, 0x3f, 1}) }, `does not know`},
	} {
		t.Run(name, func(t *testing.T) {
			r := request()
			c.change(r)
			got, err := Of(r, false)
			if err == nil {
				err = m.Match(0, got)
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := m.Match(1, &m.Containers[0]); err == nil {
		t.Error("a container more than the manifest has was accepted")
	}
}

// TestEveryMemberCounts sets each member of the protocol's request by itself: it is refused or differs, or is one
// of those that decide nothing.
func TestEveryMemberCounts(t *testing.T) {
	free := map[string]bool{
		"id": true, "ephemeral": true, "find_command": true, "rootfs.disk": true,
		"process.rows": true, "process.columns": true, "mounts.file": true,
	}
	m := manifest(t)
	seen := 0
	var walk func(path string, of func(*agent.CreateContainerRequest) protoreflect.Message)
	walk = func(path string, of func(*agent.CreateContainerRequest) protoreflect.Message) {
		fields := of(request()).Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			name := path + string(f.Name())
			if f.Message() != nil && !f.IsMap() {
				sub := func(r *agent.CreateContainerRequest) protoreflect.Message {
					parent := of(r)
					if f.IsList() {
						l := parent.Mutable(f).List()
						if l.Len() == 0 {
							return l.AppendMutable().Message()
						}
						return l.Get(0).Message()
					}
					return parent.Mutable(f).Message()
				}
				walk(name+".", sub)
				continue
			}
			r := request()
			change(of(r), f)
			if proto.Equal(r, request()) {
				t.Errorf("%s: the test did not change it", name)
				continue
			}
			seen++
			c, err := Of(r, false)
			if err == nil {
				err = m.Match(0, c)
			}
			if (err == nil) != free[name] {
				t.Errorf("%s: got %v, and that it decides nothing is %v", name, err, free[name])
			}
		}
	}
	walk("", func(r *agent.CreateContainerRequest) protoreflect.Message { return r.ProtoReflect() })
	if seen < 80 {
		t.Errorf("only %d members were tried", seen)
	}
}

// change gives a member another value.
func change(m protoreflect.Message, f protoreflect.FieldDescriptor) {
	value := func(now protoreflect.Value) protoreflect.Value {
		switch f.Kind() {
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(!now.Bool())
		case protoreflect.StringKind:
			return protoreflect.ValueOfString("other")
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("other"))
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(77)
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(77)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(77)
		default:
			return protoreflect.ValueOfInt64(77)
		}
	}
	switch {
	case f.IsMap():
		m.Mutable(f).Map().Set(protoreflect.ValueOfString("other").MapKey(), protoreflect.ValueOfString("other"))
	case f.IsList():
		m.Mutable(f).List().Append(value(f.Default()))
	default:
		m.Set(f, value(m.Get(f)))
	}
}

// A writable layer on an encrypted disk is of the manifest's size, and no other disk takes its place.
func TestEncryptedDisk(t *testing.T) {
	sealed := func() *agent.CreateContainerRequest {
		r := request()
		r.Rootfs.ScratchDisk, r.Rootfs.SealedBytes = "scratch", 1<<26
		return r
	}
	c, err := Of(sealed(), false)
	if err != nil {
		t.Fatal(err)
	}
	m := manifest(t)
	m.Containers[0] = *c
	if _, err := m.Encode(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(r *agent.RootFS)
		want   string
	}{
		"the same":          {func(*agent.RootFS) {}, ""},
		"another handle":    {func(r *agent.RootFS) { r.ScratchDisk = "other" }, ""},
		"memory":            {func(r *agent.RootFS) { r.ScratchDisk, r.SealedBytes = "", 0 }, "containers[0].root.diskBytes: the manifest says 67108864, the request 0"},
		"memory, bounded":   {func(r *agent.RootFS) { r.ScratchDisk, r.SealedBytes, r.TmpfsBytes = "", 0, 1<<26 }, "containers[0].root.memoryBytes"},
		"a larger disk":     {func(r *agent.RootFS) { r.SealedBytes++ }, "containers[0].root.diskBytes"},
		"the host's disk":   {func(r *agent.RootFS) { r.SealedBytes = 0 }, "rootfs.scratch_disk"},
		"a directory of it": {func(r *agent.RootFS) { r.Layer = "binds/0" }, "rootfs.layer"},
	} {
		r := sealed()
		c.change(r.Rootfs)
		got, err := Of(r, false)
		if err == nil {
			err = m.Match(0, got)
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestDecodeTakesTheCanonicalFormOnly(t *testing.T) {
	b, err := manifest(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"white space":    " " + string(b),
		"two documents":  string(b) + string(b),
		"unknown member": strings.Replace(string(b), `"version":1`, `"version":1,"debug":true`, 1),
		"twice":          strings.Replace(string(b), `"version":1`, `"version":2,"version":1`, 1),
		"other spelling": strings.Replace(string(b), `"version"`, `"Version"`, 1),
		"other format":   strings.Replace(string(b), Format, "manis.manifest/2", 1),
		"unknown call":   strings.Replace(string(b), `"calls":[]`, `"calls":["exec"]`, 1),
		"cut off":        string(b[:len(b)-1]),
	} {
		if _, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%s: it was accepted", name)
		}
	}
}

func TestEnvelope(t *testing.T) {
	owner, other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)), ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	b, err := manifest(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(b, owner)
	if err != nil {
		t.Fatal(err)
	}
	if _, canonical, err := Open(signed, owner.Public().(ed25519.PublicKey)); err != nil || !bytes.Equal(canonical, b) {
		t.Fatalf("got %v", err)
	}
	if _, _, err := Open(signed, other.Public().(ed25519.PublicKey)); !errors.Is(err, ErrSignature) {
		t.Errorf("another owner: got %v", err)
	}
	var e envelope
	if err := json.Unmarshal(signed, &e); err != nil {
		t.Fatal(err)
	}
	// Another manifest under the signature of this one.
	e.Payload = strings.Replace(e.Payload, e.Payload[40:44], "AAAA", 1)
	changed, _ := json.Marshal(e)
	if _, _, err := Open(changed, owner.Public().(ed25519.PublicKey)); !errors.Is(err, ErrSignature) {
		t.Errorf("changed: got %v", err)
	}
}
