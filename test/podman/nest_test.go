package podman

import (
	"path/filepath"
	"strings"
	"testing"

	"manis/test/debimage"
	"manis/test/stage"
)

// nested is what a privileged container does with runc and with Podman: containers of its own, whose namespaces, control
// groups, devices and layers are the machine's.
const nested = `set -e
# As in any container: a control group with processes of its own has no limits for those below it.
mkdir /sys/fs/cgroup/init
for pid in $(cat /sys/fs/cgroup/cgroup.procs); do echo $pid >/sys/fs/cgroup/init/cgroup.procs 2>/dev/null || true; done
sed 's/ / +/g; s/^/+/' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
cd /bundle
runc spec
sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"sh","-c","hostname; cat \/proc\/1\/comm; echo >\/dev\/null; cat \/proc\/self\/cgroup"/' config.json
runc run one
sed -i 's/"sh","-c",".*"$/"sleep","1000"/' config.json
runc run -d two </dev/null >/dev/null 2>&1
runc exec two echo in two
runc update --pids-limit 20 two
cat /sys/fs/cgroup/two/pids.max
runc pause two
runc resume two
runc kill two KILL
until runc delete two 2>/dev/null; do sleep 0.1; done
mount -t tmpfs tmpfs /mnt
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/both
echo below >/mnt/lower/file
mount -t overlay overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work /mnt/both
cat /mnt/both/file
`

const nestedSays = `runc
sh
0::/
in two
20
below`

// nestedPodman does so with Podman, whose store is best kept in memory: the root comes from the host, file by file.
const nestedPodman = `podman --root /mnt/storage --runroot /mnt/state --tmpdir /mnt/tmp --log-level error --storage-driver vfs --runtime runc \
	--cgroup-manager cgroupfs --events-backend file run --rm --network none --ulimit nofile=100:100 --ulimit nproc=50:50 --memory 64m \
	--rootfs /bundle/rootfs sh -c 'echo by podman; cat /sys/fs/cgroup/memory.max; exit 3' || echo code $?`

// A privileged container runs containers: by runc, and by Podman.
func TestNesting(t *testing.T) {
	p := podman(t)
	builder, err := debimage.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	recipe, err := debimage.Find("engine")
	if err != nil {
		t.Fatal(err)
	}
	img, err := builder.Build(t.Context(), recipe)
	if err != nil {
		t.Skip("no Debian packages to be had here: ", err)
	}
	layout := filepath.Join(stage.Dir(), "engine")
	if err := debimage.WriteLayout(layout, img, "engine:latest"); err != nil {
		t.Fatal(err)
	}
	p.OK(t, "pull", "-q", "oci:"+layout)
	image := "localhost" + layout
	t.Cleanup(func() { p.OK(t, "rmi", "-f", image) })
	c := up(t, p, "--privileged", "--network", "none", "--memory", "1g", image, "sleep", "1000")
	for _, x := range []struct{ script, want string }{{nested, nestedSays}, {nestedPodman, "by podman\n67108864\ncode 3"}} {
		r := p.Run(t, "exec", c, "bash", "-c", x.script)
		if got := strings.TrimSpace(r.Out); got != x.want || r.Code != 0 {
			t.Errorf("want:\n%s\ngot %s", x.want, r)
		}
	}
}
