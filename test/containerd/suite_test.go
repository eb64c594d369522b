package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

func TestMain(m *testing.M) { os.Exit(stage.Main(m, clean)) }

const (
	image   = "docker.io/library/box:latest"
	pause   = "docker.io/library/pause:latest"
	runtime = "io.containerd.manis.v2"
	// sandboxHandler is the handler whose pods containerd makes by the Sandbox API.
	sandboxHandler = "manis-sandbox"
	plugins        = "/usr/lib/cni" // Debian's containernetworking-plugins
	// parent is the control group that pods' own lie in, as the kubelet has one.
	parent = "manis-test"
)

// suite is containerd, started with the first test.
var suite struct {
	once   sync.Once
	ctr    *stage.Engine
	env    []string
	binary string
	daemon *exec.Cmd
	conn   *grpc.ClientConn
	before stage.Census
	skip   string
	err    error
}

func dir(parts ...string) string { return filepath.Join(append([]string{stage.Dir()}, parts...)...) }

func socket() string { return dir("c.sock") }

// ctr is containerd's command line.
func ctr(t testing.TB) *stage.Engine {
	t.Helper()
	stage.Need(t)
	binary := stage.Manis(t)
	suite.once.Do(func() {
		if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
			suite.skip = "no CNI plugins on this machine (make containerd installs them)"
			return
		}
		suite.err = prepare(t, filepath.Dir(binary))
	})
	if suite.skip != "" {
		t.Skip(suite.skip)
	}
	if suite.err != nil {
		t.Fatal(suite.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(said())
		}
	})
	return suite.ctr
}

func prepare(t testing.TB, bin string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	programs, err := stage.Containerd.Build(ctx)
	if err != nil {
		return fmt.Errorf("build containerd: %w", err)
	}
	suite.binary = filepath.Join(programs, "containerd")
	suite.env = stage.Environ(stage.Home(), "PATH="+bin+":"+programs+":"+os.Getenv("PATH"))
	e := &stage.Engine{Args: []string{filepath.Join(programs, "ctr"), "-a", socket()}, Env: suite.env, Dir: stage.Dir()}
	stage.Prepare(t, suite.env)
	// What keeps a pod's namespaces with other runtimes; Manis only notes it.
	push(t, derived(t, func(c *v1.Config) { c.Cmd = []string{"tail", "-f", "/dev/null"} }), "library/pause:latest")
	if err := configure(); err != nil {
		return err
	}
	if err := start(); err != nil {
		return err
	}
	layout, _ := stage.Box(t)
	archive := dir("layout.tar")
	if out, err := exec.Command("tar", "-C", layout, "-cf", archive, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("pack the image: %w: %s", err, out)
	}
	for _, namespace := range []string{"default", "k8s.io"} {
		cmd := e.Command(ctx, "-n", namespace, "image", "import", archive)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("import the image: %w: %s", err, out)
		}
	}
	suite.conn, err = grpc.NewClient("unix://"+socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	// Only now what the first containers make and what stays can be told apart.
	if out, err := e.Command(ctx, "run", "--rm", "--runtime", runtime, image, "first", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("run a first container: %w: %s", err, out)
	}
	suite.ctr = e
	suite.before = take()
	return nil
}

// configure writes containerd's configuration, with the example that users are given.
func configure() error {
	example, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "containerd", "manis.toml"))
	if err != nil {
		return err
	}
	byAPI, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "containerd", "manis-sandbox.toml"))
	if err != nil {
		return err
	}
	byAPI = []byte(strings.ReplaceAll(string(byAPI), "runtimes.manis]", "runtimes."+sandboxHandler+"]"))
	config := fmt.Sprintf(`version = 3
imports = [%[4]q, %[9]q, %[11]q]
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[ttrpc]
  address = %[5]q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %[6]q
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = %[10]q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[7]q]
    conf_dir = %[8]q
`, dir("root"), dir("state"), socket(), dir("manis.toml"), socket()+".ttrpc", pause, plugins, dir("cni"), dir("manis-sandbox.toml"), dir("hosts"), dir("erofs.toml"))
	network := `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": "` + dir("addresses") + `",
   "ranges": [[{"subnet": "10.88.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`
	return errors.Join(
		erofsConfig(""),
		os.WriteFile(dir("manis.toml"), example, 0o644),
		os.WriteFile(dir("manis-sandbox.toml"), byAPI, 0o644),
		os.WriteFile(dir("config.toml"), []byte(config), 0o644),
		os.MkdirAll(dir("cni"), 0o755),
		os.WriteFile(dir("cni", "10-pods.conflist"), []byte(network), 0o644),
	)
}

// start starts containerd and waits until it answers.
func start() error {
	log, err := os.OpenFile(dir("containerd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	suite.daemon = exec.Command(suite.binary, "-c", dir("config.toml"))
	suite.daemon.Env, suite.daemon.Stdout, suite.daemon.Stderr = suite.env, log, log
	if err := suite.daemon.Start(); err != nil {
		return err
	}
	ctrName := filepath.Join(filepath.Dir(suite.binary), "ctr")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command(ctrName, "-a", socket(), "version")
		if cmd.Run() == nil {
			return nil
		}
	}
	return fmt.Errorf("containerd does not answer; it said: %s", said())
}

// said is the end of what containerd, and shims by it, have said.
func said() string {
	b, _ := os.ReadFile(dir("containerd.log"))
	return string(b[max(0, len(b)-3000):])
}

// restart kills containerd and starts it again.
func restart(t testing.TB) {
	t.Helper()
	suite.daemon.Process.Kill()
	suite.daemon.Wait()
	if err := start(); err != nil {
		t.Fatal(err)
	}
	stage.Eventually(t, "containerd's CRI", func() bool {
		_, err := cri.NewRuntimeServiceClient(suite.conn).ListPodSandbox(context.Background(), new(cri.ListPodSandboxRequest))
		return err == nil
	})
}

// reported says whether containerd, or a shim by it, has said this.
func reported(words string) bool {
	b, _ := os.ReadFile(dir("containerd.log"))
	return strings.Contains(string(b), words)
}

// take counts what containers may leave behind. What containerd has of its own is not counted.
func take() stage.Census {
	return slices.DeleteFunc(stage.Take([]string{"/default/", "/" + parent}, dir("state", "io.containerd.runtime.v2.task")), func(item string) bool {
		own := func(prefixes ...string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(item, p) })
		}
		return own("process "+suite.binary, "interface cni0", "file /run/netns", "mount /run/netns") ||
			strings.HasPrefix(item, "control group ") && slices.Contains([]string{filepath.Base(item), filepath.Base(filepath.Dir(item))}, parent) ||
			slices.Contains([]string{"file /run/manis", "file /run/manis/pods", "file /run/containerd", "file /run/containerd/s"}, item) ||
			own("file /run/containerd/io.containerd", "file /run/containerd/fifo", "file /run/containerd/runc") || item == "file "+dir("state", "io.containerd.runtime.v2.task", "k8s.io") || item == "file /run/cni" || own("file /run/cni/") || item == "file /run/nri"
	})
}

// clean finds what is left after the last test, and ends containerd.
func clean() int {
	code := 0
	if suite.ctr != nil {
		for _, item := range stage.Settled(suite.before, take) {
			fmt.Fprintln(os.Stderr, "left behind by the suite:", item)
			code = 1
		}
	}
	// What the kubelet would remove.
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + parent + "/*", "/sys/fs/cgroup/*/" + parent, "/sys/fs/cgroup/" + parent + "/*", "/sys/fs/cgroup/" + parent} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			os.Remove(d)
		}
	}
	if suite.conn != nil {
		suite.conn.Close()
	}
	if suite.daemon != nil && suite.daemon.Process != nil {
		suite.daemon.Process.Signal(os.Interrupt)
		done := time.AfterFunc(20*time.Second, func() { suite.daemon.Process.Kill() })
		suite.daemon.Wait()
		done.Stop()
	}
	return code
}

// nothingLeft fails if there is more than before the tests.
func nothingLeft(t testing.TB) {
	t.Helper()
	for _, item := range stage.Settled(suite.before, take) {
		t.Errorf("left behind: %s", item)
	}
}

// kubelet is containerd as the kubelet sees it.
func kubelet(t testing.TB) (cri.RuntimeServiceClient, context.Context) {
	t.Helper()
	ctr(t)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return cri.NewRuntimeServiceClient(suite.conn), ctx
}
