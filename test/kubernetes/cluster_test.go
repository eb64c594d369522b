package kubernetes

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"manis/test/debimage"
	"manis/test/stage"
)

const (
	version = "v1.37.2" // as suite/go.mod has it
	plugins = "/usr/lib/cni"
	// image is that of pods' sandboxes.
	image = "docker.io/library/pause:latest"
	// address is the node's: of those for examples, on an interface that leads nowhere. address6 is its second one.
	address  = "192.0.2.1"
	address6 = "2001:db8::1"
	// Where pods and Services have their addresses; the second ones if the host's kernel has IPv6.
	pods, pods6         = "10.89.7.0/24", "fd00:89:7::/64"
	services, services6 = "10.96.0.0/16", "fd00:96::/112"
	// names is where the cluster's name server is, if a test has started one.
	names = "10.96.0.10"
	// family begins the names of control groups of these clusters.
	family = "manis-kubernetes-"
	token  = "only-on-this-stage"
)

// source is Kubernetes.
var source = stage.Source{
	Name: "kubernetes",
	// Programs that do not know their version refuse each other.
	Flags: []string{"-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion=" + version +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"},
	Packages: []string{
		"k8s.io/kubernetes/cmd/kubelet",
		"k8s.io/kubernetes/cmd/kube-apiserver",
		"k8s.io/kubernetes/cmd/kube-controller-manager",
		"k8s.io/kubernetes/cmd/kube-scheduler",
		"k8s.io/kubernetes/cmd/kubectl",
		"k8s.io/kubernetes/cmd/kube-proxy",
	},
}

// cluster is a node with all that makes it one.
type cluster struct {
	programs   string
	containerd string
	env        []string
	kubectl    *stage.Engine
	running    []*exec.Cmd
}

// six says whether there is IPv6.
var six = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "0"
})

// both joins what is said for IPv4 with what is said for IPv6, if there is that.
func both(four, more string) string {
	if !six() {
		return four
	}
	return four + "," + more
}

// parent is the control group below which the kubelet makes those of pods: of this cluster alone, since a kubelet ends what it does not know there.
func parent() string { return family + strings.TrimPrefix(filepath.Base(stage.Dir()), "manis-stage-") }

func dir(parts ...string) string { return filepath.Join(append([]string{stage.Dir()}, parts...)...) }

// up starts everything and returns when the node is ready for pods.
func (c *cluster) up(ctx context.Context, t testing.TB, bin string) (err error) {
	if c.programs, err = source.Build(ctx); err != nil {
		return err
	}
	if c.containerd, err = stage.Containerd.Build(ctx); err != nil {
		return err
	}
	c.env = stage.Environ(stage.Home(), "PATH="+strings.Join([]string{bin, c.programs, c.containerd, os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":"))
	c.kubectl = &stage.Engine{
		Args: []string{filepath.Join(c.programs, "kubectl"), "--kubeconfig", dir("kubeconfig")}, Env: c.env, Dir: stage.Dir(),
	}
	if err := errors.Join(c.ground(), c.configure()); err != nil {
		return err
	}
	if err := c.control(ctx); err != nil {
		return err
	}
	stage.Prepare(t, c.env)
	return c.node(ctx, t)
}

// ground makes what is the node's on the stage.
func (c *cluster) ground() error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("make the node's interface: %w", err)
	}
	ip := &net.IPNet{IP: net.ParseIP(address), Mask: net.CIDRMask(32, 32)}
	if err := errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}), netlink.LinkSetUp(link)); err != nil {
		return fmt.Errorf("set the node's interface up: %w", err)
	}
	if six() {
		ip := &net.IPNet{IP: net.ParseIP(address6), Mask: net.CIDRMask(128, 128)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("give the node its IPv6 address: %w", err)
		}
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644); err != nil {
			return fmt.Errorf("let the stage forward IPv6: %w", err)
		}
	}
	// As a way to the outside would be: programs of the node ask Services, too.
	for _, to := range []string{services, services6} {
		_, net, err := net.ParseCIDR(to)
		if err != nil {
			return err
		}
		if net.IP.To4() == nil && !six() {
			continue
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: net}); err != nil {
			return fmt.Errorf("make a route to %s: %w", to, err)
		}
	}
	// The kubelet sets what the machine has one of. It is shown files instead, so that nothing has to be put back.
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		path := filepath.Join("/proc/sys", name)
		value, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		cover := dir("sysctl-" + strings.ReplaceAll(name, "/", "-"))
		if err := os.WriteFile(cover, value, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(cover, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover %s: %w", path, err)
		}
	}
	// Paths that cannot be told to be elsewhere.
	if err := unix.Mount("tmpfs", "/var/log", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("cover /var/log: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("let the stage forward: %w", err)
	}
	for _, g := range groups() {
		// Those of clusters that were killed.
		others, _ := filepath.Glob(filepath.Join(filepath.Dir(g), family+"*"))
		for _, other := range others {
			if _, err := os.Stat(filepath.Join(filepath.Dir(stage.Dir()), "manis-stage-"+strings.TrimPrefix(filepath.Base(other), family))); errors.Is(err, os.ErrNotExist) {
				removeGroups(other)
			}
		}
		if err := os.MkdirAll(g, 0o755); err != nil {
			return fmt.Errorf("make the control group: %w", err)
		}
		// Without processors or memory nodes nothing can run there.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if all, err := os.ReadFile(filepath.Join(filepath.Dir(g), name)); err == nil {
				os.WriteFile(filepath.Join(g, name), all, 0o644)
			}
		}
		// With the weight of one process all pods together would get next to nothing on a machine that does other things, too.
		for name, weight := range map[string]string{"cpu.shares": "10240", "cpu.weight": "1000"} {
			if file := filepath.Join(g, name); exists(file) {
				if err := os.WriteFile(file, []byte(weight), 0o644); err != nil {
					return fmt.Errorf("give the cluster's pods their weight: %w", err)
				}
			}
		}
	}
	return nil
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// groups are the control groups that hold the pods': one, or one per controller.
func groups() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{filepath.Join("/sys/fs/cgroup", parent())}
	}
	var list []string
	entries, _ := os.ReadDir("/sys/fs/cgroup")
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, filepath.Join("/sys/fs/cgroup", e.Name(), parent()))
		}
	}
	return list
}

// configure writes the programs' configurations.
func (c *cluster) configure() error {
	example, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "containerd", "manis.toml"))
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	kubeconfig := `apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "https://` + address + `:6443", insecure-skip-tls-verify: true}}]
users: [{name: root, user: {token: ` + token + `}}]
contexts: [{name: here, context: {cluster: here, user: root}}]
`
	containerd := fmt.Sprintf(`version = 3
imports = [%[4]q, %[9]q]
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[ttrpc]
  address = %[5]q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %[6]q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[7]q]
    conf_dir = %[8]q
`, dir("containerd"), dir("state"), dir("c.sock"), dir("manis.toml"), dir("c.sock.ttrpc"), image, plugins, dir("cni"), dir("conf.d", "*.toml"))
	ranges, routes := `[{"subnet": "`+pods+`"}]`, `{"dst": "0.0.0.0/0"}`
	if six() {
		ranges, routes = ranges+`, [{"subnet": "`+pods6+`"}]`, routes+`, {"dst": "::/0"}`
	}
	network := `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "` + dir("addresses") + `",
   "ranges": [` + ranges + `], "routes": [` + routes + `]}},
  {"type": "bandwidth", "capabilities": {"bandwidth": true}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`
	kubelet := `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://` + dir("c.sock") + `
cgroupDriver: cgroupfs
cgroupRoot: /` + parent() + `
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {memory.available: 10Mi, nodefs.available: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
podLogsDir: ` + dir("logs") + `
resolvConf: ""
clusterDNS: [` + names + `]
clusterDomain: cluster.local
syncFrequency: 5s
maxPods: 200
volumePluginDir: ` + dir("plugins") + `
`
	if err := c.aggregate(); err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(dir("manis.toml"), example, 0o644),
		os.WriteFile(dir("containerd.toml"), []byte(containerd), 0o644),
		os.MkdirAll(dir("cni"), 0o755),
		os.WriteFile(dir("cni", "10-pods.conflist"), []byte(network), 0o644),
		os.WriteFile(dir("kubeconfig"), []byte(kubeconfig), 0o600),
		os.WriteFile(dir("kubelet.yaml"), []byte(kubelet), 0o644),
		os.WriteFile(dir("tokens"), []byte(token+`,root,root,"system:masters"`+"\n"), 0o600),
		os.WriteFile(dir("accounts.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}

// aggregate makes the keys by which the API server shows itself to those that serve parts of its API, as metrics-server does.
func (c *cluster) aggregate() error {
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "front"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	client := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "front-proxy-client"}, NotBefore: authority.NotBefore,
		NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	_, top, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	root, err := x509.CreateCertificate(rand.Reader, authority, authority, top.Public(), top)
	if err != nil {
		return err
	}
	leaf, err := x509.CreateCertificate(rand.Reader, client, authority, key.Public(), top)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(dir("front.ca"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), 0o644),
		os.WriteFile(dir("front.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}), 0o644),
		os.WriteFile(dir("front.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}

// control starts what a cluster is governed by.
func (c *cluster) control(ctx context.Context) error {
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		return err
	}
	if err := c.start(etcd, "--data-dir", dir("etcd"), "--log-level", "warn", "--logger", "zap", "--log-outputs", "stderr"); err != nil {
		return err
	}
	if err := c.start("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--advertise-address="+address,
		"--secure-port=6443", "--cert-dir="+dir("certificates"), "--service-cluster-ip-range="+both(services, services6), "--allow-privileged=true",
		"--authorization-mode=RBAC", "--token-auth-file="+dir("tokens"), "--kubelet-preferred-address-types=InternalIP", "--service-account-issuer=https://stage",
		"--service-account-signing-key-file="+dir("accounts.key"), "--service-account-key-file="+dir("accounts.key"), "--profiling=false",
		"--enable-aggregator-routing=true", "--requestheader-client-ca-file="+dir("front.ca"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+dir("front.crt"), "--proxy-client-key-file="+dir("front.key")); err != nil {
		return err
	}
	if err := c.await(ctx, "the API server", func() bool { return c.says("get", "--raw", "/readyz") == "ok" }); err != nil {
		return err
	}
	return errors.Join(
		c.start("kube-controller-manager", "--kubeconfig="+dir("kubeconfig"), "--service-account-private-key-file="+dir("accounts.key"),
			"--root-ca-file="+dir("certificates", "apiserver.crt"), "--leader-elect=false", "--cert-dir="+dir("certificates"), "--use-service-account-credentials=false",
			// A test does not wait for minutes where the defaults would.
			"--horizontal-pod-autoscaler-sync-period=5s", "--horizontal-pod-autoscaler-initial-readiness-delay=5s", "--horizontal-pod-autoscaler-cpu-initialization-period=20s"),
		c.start("kube-scheduler", "--kubeconfig="+dir("kubeconfig"), "--leader-elect=false", "--cert-dir="+dir("certificates")),
	)
}

// node starts what runs on every node, and waits until it is ready.
func (c *cluster) node(ctx context.Context, t testing.TB) error {
	if err := c.start("containerd", "-c", dir("containerd.toml")); err != nil {
		return err
	}
	ctr := func(args ...string) error { return c.ctr(ctx, args...) }
	if err := c.await(ctx, "containerd", func() bool { return ctr("version") == nil }); err != nil {
		return err
	}
	box, _ := stage.Box(t)
	sandbox, err := pause(ctx)
	if err != nil {
		return fmt.Errorf("build the image of sandboxes: %w", err)
	}
	for _, layout := range []string{box, sandbox} {
		if err := c.load(ctx, layout); err != nil {
			return err
		}
	}
	if err := c.start("kubelet", "--config="+dir("kubelet.yaml"), "--kubeconfig="+dir("kubeconfig"), "--root-dir="+dir("kubelet"),
		"--cert-dir="+dir("certificates"), "--hostname-override=node", "--node-ip="+both(address, address6), "--v=2"); err != nil {
		return err
	}
	if err := c.proxy("iptables"); err != nil {
		return err
	}
	if err := c.await(ctx, "the node", func() bool {
		return c.says("get", "node", "node", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`) == "True" &&
			c.says("get", "node", "node", "-o", "jsonpath={.spec.taints}") == ""
	}); err != nil {
		return err
	}
	return c.await(ctx, "the service account", func() bool { return c.says("get", "serviceaccount", "default", "-o", "name") != "" })
}

// proxy starts what has Services reach their pods, in one of its modes.
func (c *cluster) proxy(mode string) error {
	return c.start("kube-proxy", "--kubeconfig="+dir("kubeconfig"), "--hostname-override=node", "--proxy-mode="+mode, "--cluster-cidr="+both(pods, pods6),
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")
}

// exchange ends kube-proxy, has it take away what it has made, and starts it in another mode.
func (c *cluster) exchange(ctx context.Context, mode string) error {
	at := slices.IndexFunc(c.running, func(cmd *exec.Cmd) bool { return filepath.Base(cmd.Path) == "kube-proxy" })
	if at >= 0 {
		stop(c.running[at], 20*time.Second)
		c.running = slices.Delete(c.running, at, at+1)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cleanup := exec.CommandContext(ctx, filepath.Join(c.programs, "kube-proxy"), "--cleanup")
	cleanup.Env = c.env
	if out, err := cleanup.CombinedOutput(); err != nil {
		return fmt.Errorf("clean up after kube-proxy: %w: %s", err, out)
	}
	return c.proxy(mode)
}

// ctr asks containerd.
func (c *cluster) ctr(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.containerd, "ctr"), append([]string{"-a", dir("c.sock"), "-n", "k8s.io"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %s: %w: %s", args[0], err, out)
	}
	return nil
}

// load gives the node an image that is an OCI layout.
func (c *cluster) load(ctx context.Context, layout string) error {
	archive := layout + ".layout.tar"
	if out, err := exec.CommandContext(ctx, "tar", "-C", layout, "-cf", archive, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("pack the image: %w: %s", err, out)
	}
	return c.ctr(ctx, "images", "import", archive)
}

// engine is the process of containerd.
func (c *cluster) engine() *exec.Cmd {
	return c.running[slices.IndexFunc(c.running, func(cmd *exec.Cmd) bool { return filepath.Base(cmd.Path) == "containerd" })]
}

// restart ends containerd and starts it again, in its place among the programs.
func (c *cluster) restart() error {
	old := c.engine()
	at := slices.Index(c.running, old)
	stop(old, 20*time.Second)
	err := c.start("containerd", "-c", dir("containerd.toml"))
	if err == nil {
		last := len(c.running) - 1
		c.running[at], c.running = c.running[last], c.running[:last]
	}
	return err
}

// pause returns an image that does nothing, for the sandboxes of other runtimes: Manis does not execute it.
func pause(ctx context.Context) (layout string, err error) {
	b, err := debimage.New(nil)
	if err != nil {
		return "", err
	}
	r, err := debimage.Find("busybox")
	if err != nil {
		return "", err
	}
	r.Name, r.Config.Entrypoint, r.Config.Cmd = "pause", []string{"sleep", "1000000"}, nil
	img, err := b.Build(ctx, r)
	if err != nil {
		return "", err
	}
	layout = dir("pause")
	return layout, debimage.WriteLayout(layout, img, "pause:latest")
}

// start starts a program, whose words go to a file.
func (c *cluster) start(name string, args ...string) error {
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(c.programs, name)
		if _, err := os.Stat(path); err != nil {
			path = filepath.Join(c.containerd, name)
		}
	}
	log, err := os.Create(dir(filepath.Base(name) + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.env, stage.Dir(), log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	c.running = append(c.running, cmd)
	return nil
}

// says is kubectl's output, or nothing.
func (c *cluster) says(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := c.kubectl.Command(ctx, args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func (c *cluster) await(ctx context.Context, what string, there func() bool) error {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		if there() {
			return nil
		}
	}
	return fmt.Errorf("waited in vain for %s; %s", what, c.said(1500))
}

// said is the end of what each program has said.
func (c *cluster) said(most int) string {
	var all strings.Builder
	for _, cmd := range c.running {
		name := filepath.Base(cmd.Path)
		b, _ := os.ReadFile(dir(name + ".log"))
		fmt.Fprintf(&all, "%s said: %s\n", name, b[max(0, len(b)-most):])
	}
	return all.String()
}

// down ends the programs, last ones first, and removes what the kubelet leaves.
func (c *cluster) down() {
	for _, cmd := range slices.Backward(c.running) {
		stop(cmd, 10*time.Second)
	}
	for _, g := range groups() {
		removeGroups(g)
	}
}

// stop ends a program, the hard way after some time.
func stop(cmd *exec.Cmd, after time.Duration) {
	cmd.Process.Signal(unix.SIGTERM)
	kill := time.AfterFunc(after, func() { cmd.Process.Kill() })
	cmd.Wait()
	kill.Stop()
}

// removeGroups removes a control group and those in it, which are empty.
func removeGroups(path string) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			removeGroups(filepath.Join(path, e.Name()))
		}
	}
	os.Remove(path)
}
