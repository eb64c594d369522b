package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// output runs a container to its end and returns what it wrote, and its exit code.
func (p *pod) output(name string, change func(*cri.ContainerConfig), command ...string) (string, int32) {
	p.t.Helper()
	id := p.start(name, change, command...)
	stage.Eventually(p.t, "the end of "+name, func() bool { return p.status(id).State == cri.ContainerState_CONTAINER_EXITED })
	code := p.status(id).ExitCode
	log, err := os.ReadFile(filepath.Join(p.config.LogDirectory, name+".log"))
	if err != nil {
		p.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(log)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out.WriteString(f[3])
		}
	}
	if _, err := p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		p.t.Errorf("RemoveContainer: %v", err)
	}
	return strings.TrimSpace(out.String()), code
}

// fails makes and starts a container, of which one must fail with words.
func (p *pod) fails(name, words string, change func(*cri.ContainerConfig)) {
	p.t.Helper()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image}, Command: []string{"true"}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: new(cri.LinuxContainerSecurityContext)},
	}
	change(config)
	made, err := p.cri.CreateContainer(p.ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err == nil {
		_, err = p.cri.StartContainer(p.ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
		p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: made.ContainerId})
	}
	if err == nil || !strings.Contains(status.Convert(err).Message(), words) {
		p.t.Errorf("%s: want an error with %q, got %v", name, words, err)
	}
}

// secure changes a container's security context.
func secure(change func(*cri.LinuxContainerSecurityContext)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { change(c.Linux.SecurityContext) }
}

// TestUsers are the ways to say whose processes a container's are.
func TestUsers(t *testing.T) {
	p := newPod(t, "users", nil)
	const who = "grep -E '^(Uid|Gid|Groups):' /proc/self/status | tr -s '\\t ' ' '"
	for name, c := range map[string]struct {
		change func(*cri.LinuxContainerSecurityContext)
		want   string
	}{
		"image":  {func(s *cri.LinuxContainerSecurityContext) {}, "Uid: 0 0 0 0\nGid: 0 0 0 0\nGroups: 0"},
		"number": {func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1234} }, "Uid: 1234 1234 1234 1234\nGid: 0 0 0 0\nGroups: 0"},
		"name":   {func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "www-data" }, "Uid: 33 33 33 33\nGid: 33 33 33 33\nGroups: 33"},
		"groups": {func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &cri.Int64Value{Value: 1001}, &cri.Int64Value{Value: 1002}, []int64{3000, 4000}
		}, "Uid: 1001 1001 1001 1001\nGid: 1002 1002 1002 1002\nGroups: 1002 3000 4000"},
	} {
		if out, _ := p.output(name, secure(c.change), "sh", "-c", who); out != c.want {
			t.Errorf("%s: %q, want %q", name, out, c.want)
		}
	}
	// A user of groups that the image names.
	push(t, derived(t, func(c *v1.Config) { c.User = "1000" },
		file{"etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"},
		file{"etc/group", 0o644, "root:x:0:\nuser:x:1000:\nimages:x:50000:user\n"}), "tests/grouped:latest")
	pull(t, "example.com/tests/grouped:latest")
	for policy, want := range map[cri.SupplementalGroupsPolicy]string{
		cri.SupplementalGroupsPolicy_Merge:  "Groups: 1000 1234 50000",
		cri.SupplementalGroupsPolicy_Strict: "Groups: 1000 1234",
	} {
		out, _ := p.output(policy.String(), func(c *cri.ContainerConfig) {
			c.Image.Image = "example.com/tests/grouped:latest"
			c.Linux.SecurityContext.SupplementalGroups, c.Linux.SecurityContext.SupplementalGroupsPolicy = []int64{1234}, policy
		}, "sh", "-c", who+" | tail -n 1")
		if out != want {
			t.Errorf("%s: %q, want %q", policy, out, want)
		}
	}
	p.fails("nobody", "no users found", secure(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-knows" }))
	p.fails("groupless", "specified without user", secure(func(s *cri.LinuxContainerSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 1} }))
}

// TestPrivileges are capabilities and what else says what a process may do.
func TestPrivileges(t *testing.T) {
	p := newPod(t, "privileges", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	capabilities := func(add, drop []string) func(*cri.LinuxContainerSecurityContext) {
		return func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{AddCapabilities: add, DropCapabilities: drop}
		}
	}
	const field = "sed -n 's/^%s:\\t//p' /proc/self/status"
	of := func(name string) string { return strings.Replace(field, "%s", name, 1) }
	for name, c := range map[string]struct {
		change        func(*cri.LinuxContainerSecurityContext)
		command, want string
	}{
		"usual":    {func(s *cri.LinuxContainerSecurityContext) {}, of("CapEff"), "00000000a80425fb"},
		"added":    {capabilities([]string{"NET_ADMIN"}, nil), of("CapEff"), "00000000a80435fb"},
		"dropped":  {capabilities(nil, []string{"CHOWN"}), of("CapEff"), "00000000a80425fa"},
		"none":     {capabilities(nil, []string{"ALL"}), of("CapEff") + "; " + of("CapBnd"), "0000000000000000\n0000000000000000"},
		"only one": {capabilities([]string{"KILL"}, []string{"ALL"}), of("CapEff"), "0000000000000020"},
		// Without CAP_SYS_RESOURCE, if containerd has none: it gives no more than it has.
		"all":       {capabilities([]string{"ALL"}, nil), of("CapEff") + " | sed s/e/f/", "000001ffffffffff"},
		"net admin": {capabilities([]string{"NET_ADMIN"}, nil), "ip link add dummy0 type bridge && ip -o link show dummy0 | cut -d: -f2; ip link del dummy0", "dummy0"},
		"no admin":  {func(s *cri.LinuxContainerSecurityContext) {}, "ip link add dummy0 type bridge 2>&1 | grep -o 'not permitted'", "not permitted"},
		"privileged": {func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true },
			of("Seccomp") + "; mount -t tmpfs none /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs none /mnt && echo mounted; test -w /sys/kernel && echo writable", "0\nmounted\nwritable"},
		"unprivileged": {func(s *cri.LinuxContainerSecurityContext) {}, "mkdir -p /mnt; mount -t tmpfs none /mnt 2>/dev/null || echo refused", "refused"},
		"new":          {func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true }, of("NoNewPrivs"), "1"},
		"not new":      {func(s *cri.LinuxContainerSecurityContext) {}, of("NoNewPrivs"), "0"},
		"read-only":    {func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }, "touch /x 2>&1; touch /dev/shm/x && echo shared", "touch: /x: Read-only file system\nshared"},
		"writable":     {func(s *cri.LinuxContainerSecurityContext) {}, "touch /x && echo made", "made"},
		"masked": {func(s *cri.LinuxContainerSecurityContext) {
			s.MaskedPaths = []string{"/etc/passwd", "/var", "/nonesuch"}
		},
			"wc -c </etc/passwd; ls -A /var", "0"},
		"read-only paths": {func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/tmp", "/proc/sys"} },
			"touch /tmp/x 2>&1; echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused", "touch: /tmp/x: Read-only file system\nrefused"},
	} {
		change := func(config *cri.ContainerConfig) { c.change(config.Linux.SecurityContext) }
		if out, _ := p.output(strings.ReplaceAll(name, " ", "-"), change, "sh", "-c", c.command); out != c.want {
			t.Errorf("%s: %q, want %q", name, out, c.want)
		}
	}
	// A set-user-ID program gives its user only where that is permitted.
	push(t, derived(t, nil, setuidProgram(t)), "tests/setuid:latest")
	pull(t, "example.com/tests/setuid:latest")
	for name, c := range map[string]struct {
		not  bool
		want string
	}{"setuid": {false, "Effective uid: 0"}, "no-setuid": {true, "Effective uid: 1000"}} {
		out, _ := p.output(name, func(config *cri.ContainerConfig) {
			config.Image.Image = "example.com/tests/setuid:latest"
			config.Linux.SecurityContext.RunAsUser, config.Linux.SecurityContext.NoNewPrivs = &cri.Int64Value{Value: 1000}, c.not
		}, "/nnp")
		if out != c.want {
			t.Errorf("%s: %q, want %q", name, out, c.want)
		}
	}
}

// TestSeccompProfiles are the kinds of profiles, which hold in the guest.
func TestSeccompProfiles(t *testing.T) {
	p := newPod(t, "seccomp", nil)
	local := dir("seccomp.json")
	if err := os.WriteFile(local, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	damaged := dir("damaged.json")
	if err := os.WriteFile(damaged, []byte(`{`), 0o644); err != nil {
		t.Fatal(err)
	}
	profile := func(kind cri.SecurityProfile_ProfileType, ref string) func(*cri.ContainerConfig) {
		return secure(func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		})
	}
	const look = "sed -n 's/^Seccomp:\\t//p' /proc/self/status; unshare -U true 2>/dev/null && echo unshared; mkdir /made 2>/dev/null && echo made; true"
	for name, c := range map[string]struct {
		change func(*cri.ContainerConfig)
		want   string
	}{
		"unconfined": {profile(cri.SecurityProfile_Unconfined, ""), "0\nunshared\nmade"},
		"default":    {profile(cri.SecurityProfile_RuntimeDefault, ""), "2\nmade"},
		"localhost":  {profile(cri.SecurityProfile_Localhost, local), "2\nunshared"},
		"none":       {func(*cri.ContainerConfig) {}, "0\nunshared\nmade"},
	} {
		if out, _ := p.output(name, c.change, "sh", "-c", look); out != c.want {
			t.Errorf("%s: %q, want %q", name, out, c.want)
		}
	}
	p.fails("absent", "no such file", profile(cri.SecurityProfile_Localhost, dir("absent.json")))
	p.fails("damaged", "seccomp", profile(cri.SecurityProfile_Localhost, damaged))
	// What the host does not have cannot be insisted on.
	apparmor := func(kind cri.SecurityProfile_ProfileType) func(*cri.ContainerConfig) {
		return secure(func(s *cri.LinuxContainerSecurityContext) {
			s.Apparmor = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: "profile"}
		})
	}
	if out, _ := p.output("no-apparmor", apparmor(cri.SecurityProfile_Unconfined), "echo", "ran"); out != "ran" {
		t.Errorf("without AppArmor: %q", out)
	}
	p.fails("apparmor", "apparmor", apparmor(cri.SecurityProfile_Localhost))
}

// TestNamespaceModes are those of a pod's namespaces that other tests do not have.
func TestNamespaceModes(t *testing.T) {
	hosts := func(name string, options *cri.NamespaceOption) *pod {
		return newPod(t, name, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = options })
	}
	// The host's own are the machine's: nothing of the host is seen.
	p := hosts("nodes", &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE})
	p.start("one", nil, "sh", "-c", "echo words >/dev/shm/file; exec sleep 54321")
	two := p.start("two", nil, "sh", "-c", idle)
	stage.Eventually(t, "what the other one has in the shared memory", func() bool {
		out, _ := p.exec(two, "cat", "/dev/shm/file")
		return out == "words"
	})
	if out, _ := p.exec(two, "ps"); !strings.Contains(out, "sleep 54321") || strings.Contains(out, "qemu") || strings.Contains(out, "containerd") {
		t.Errorf("hostPID shows %s", out)
	}
	for name, c := range map[string]struct {
		options *cri.NamespaceOption
		words   string
	}{
		"nouserids": {&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD}}, "mapping"},
		"target":    {&cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET}, ""},
	} {
		client, ctx := kubelet(t)
		answer, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{RuntimeHandler: "manis", Config: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "no" + name, Namespace: "default", Uid: "no" + name}, LogDirectory: dir("logs", "no"+name),
			Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + parent + "/no" + name, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: c.options}},
		}})
		if c.words == "" {
			// Means nothing for a sandbox.
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.Contains(status.Convert(err).Message(), c.words) {
			t.Errorf("%s: want an error with %q, got %v", name, c.words, err)
		}
		if err == nil {
			client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: answer.PodSandboxId})
			client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: answer.PodSandboxId})
		}
	}
	p.fails("lost", "", secure(func(s *cri.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "nonesuch"}
	}))
	if _, err := p.cri.ContainerStatus(p.ctx, &cri.ContainerStatusRequest{ContainerId: "lost"}); status.Code(err) != codes.NotFound {
		t.Errorf("what could not be made is there: %v", err)
	}
}
