package debimage

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Recipe says what is in an image. Recipes lists the ones that come with this package.
type Recipe struct {
	// Name is the image's short name and first tag.
	Name string
	// About is one line for a listing.
	About string
	// Busybox asks for the tiny image of one static binary; Packages must be empty.
	Busybox bool
	// Packages are added to a minimal Debian system, in a layer of their own.
	Packages []string
	// Before and After are shell scripts run as root in the new system, before and after its
	// Packages are installed.
	Before, After string
	// Config is the image's configuration; Env gets a PATH if it has none.
	Config v1.Config
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var recipes = []Recipe{
	{
		Name:    "busybox",
		About:   "one static binary with a shell and the usual tools (2 MB, needs no root)",
		Busybox: true,
		Config:  v1.Config{Cmd: []string{"sh"}},
	},
	{
		Name:   "debian",
		About:  "Debian's minimal system with apt",
		Config: v1.Config{Cmd: []string{"bash"}},
	},
	{
		Name:     "python",
		About:    "Debian with Python 3",
		Packages: []string{"python3"},
		Config:   v1.Config{Cmd: []string{"python3"}},
	},
	{
		Name:     "tools",
		About:    "Debian with network, firewall, file system and tracing tools",
		Packages: []string{"iproute2", "iptables", "nftables", "iputils-ping", "curl", "ca-certificates", "procps", "strace", "e2fsprogs", "attr", "acl", "libcap2-bin", "kmod", "util-linux-extra"},
		Config:   v1.Config{Cmd: []string{"bash"}},
	},
	{
		Name:     "engine",
		About:    "Debian with runc and Podman, and a root filesystem at /bundle for them",
		Packages: []string{"runc", "podman", "busybox-static", "fuse-overlayfs"},
		After: `mkdir -p /bundle/rootfs/bin /bundle/rootfs/proc /bundle/rootfs/dev /bundle/rootfs/sys /bundle/rootfs/tmp /bundle/rootfs/etc
cp /bin/busybox /bundle/rootfs/bin/
for name in sh echo cat id mount ls hostname true false sleep ip; do ln -s busybox /bundle/rootfs/bin/$name; done`,
		Config: v1.Config{Cmd: []string{"bash"}},
	},
	{
		Name:     "nginx",
		About:    "a web server on port 80, its logs on the container's streams",
		Packages: []string{"nginx-light"},
		After: `ln -sf /dev/stdout /var/log/nginx/access.log
ln -sf /dev/stderr /var/log/nginx/error.log
mkdir -p /usr/share/nginx/html
cp /var/www/html/index.nginx-debian.html /usr/share/nginx/html/index.html
sed -i 's|root /var/www/html;|root /usr/share/nginx/html;|' /etc/nginx/sites-available/default`,
		Config: v1.Config{
			Cmd:          []string{"nginx", "-g", "daemon off;"},
			ExposedPorts: map[string]struct{}{"80/tcp": {}},
			StopSignal:   "SIGQUIT",
		},
	},
	{
		Name:     "redis",
		About:    "a key-value store on port 6379 that keeps its data in the volume /data",
		Packages: []string{"redis-server"},
		After:    "install -d -o redis -g redis /data",
		Config: v1.Config{
			User:         "redis",
			WorkingDir:   "/data",
			Cmd:          []string{"redis-server", "--bind", "0.0.0.0", "-::*", "--protected-mode", "no", "--dir", "/data", "--appendonly", "yes"},
			ExposedPorts: map[string]struct{}{"6379/tcp": {}},
			Volumes:      map[string]struct{}{"/data": {}},
		},
	},
	{
		Name:     "postgres",
		About:    "a database on port 5432 that keeps its data in the volume /var/lib/postgresql/data",
		Packages: []string{"postgresql"},
		// The cluster is made at the first start, in the volume, and not here.
		Before: `mkdir -p /etc/postgresql-common
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf`,
		After: `ln -s "$(echo /usr/lib/postgresql/*/bin)" /usr/local/pgsql
install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data
install -d -o postgres -g postgres -m 2775 /var/run/postgresql
cat >/usr/local/bin/start-postgres <<'SCRIPT'
#!/bin/sh
# Makes a database cluster in an empty $PGDATA, then becomes the server.
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	initdb --username=postgres --auth-local=trust --auth-host=scram-sha-256 --pwfile=/dev/stdin <<-END
	${POSTGRES_PASSWORD:-postgres}
	END
	echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
fi
exec postgres -c listen_addresses='*' "$@"
SCRIPT
chmod 755 /usr/local/bin/start-postgres`,
		Config: v1.Config{
			User:         "postgres",
			Env:          []string{defaultPath + ":/usr/local/pgsql", "PGDATA=/var/lib/postgresql/data"},
			Entrypoint:   []string{"start-postgres"},
			ExposedPorts: map[string]struct{}{"5432/tcp": {}},
			Volumes:      map[string]struct{}{"/var/lib/postgresql/data": {}},
			StopSignal:   "SIGINT",
		},
	},
}

// Recipes returns the recipes that come with this package; the caller owns the slice.
func Recipes() []Recipe { return slices.Clone(recipes) }

// Find returns the recipe of this name.
func Find(name string) (Recipe, error) {
	names := make([]string, 0, len(recipes))
	for _, r := range recipes {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return Recipe{}, fmt.Errorf("no recipe %q (there are %s)", name, strings.Join(names, ", "))
}

// Including returns a recipe with further Debian packages.
func (r Recipe) Including(packages ...string) Recipe {
	r.Packages = slices.Concat(r.Packages, packages)
	return r
}

// validate refuses what apt or a shell could take for something else.
func (r Recipe) validate() error {
	if r.Name == "" {
		return fmt.Errorf("recipe has no name")
	}
	if r.Busybox && (len(r.Packages) > 0 || r.Before != "" || r.After != "") {
		return fmt.Errorf("recipe %s: the busybox image has no package manager (start from debian)", r.Name)
	}
	for _, p := range r.Packages {
		if !packageName(p) {
			return fmt.Errorf("recipe %s: %q is not the name of a Debian package", r.Name, p)
		}
	}
	return nil
}

// packageName follows Debian Policy 5.6.1: lower case letters, digits, plus, minus and full stop,
// at least two, the first a letter or digit.
func packageName(s string) bool {
	if len(s) < 2 || len(s) > 200 || strings.ContainsRune("+-.", rune(s[0])) {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

// key names the image in the cache. Debian's packages change under the same name; an
// image that was built stays as it was until the cache is emptied.
func (r Recipe) key() (string, error) {
	if err := r.validate(); err != nil {
		return "", err
	}
	parts := []any{generation, r}
	if r.Busybox {
		binary, err := findBusybox()
		if err == nil {
			content, err := os.ReadFile(binary)
			if err != nil {
				return "", err
			}
			parts = append(parts, content)
		}
	} else {
		source, err := findSource()
		if err != nil {
			return "", err
		}
		parts = append(parts, source)
	}
	digest, err := digestOf(parts)
	return r.Name + "-" + digest, err
}

// config returns the image's configuration file without its layers.
func (r Recipe) config() *v1.ConfigFile {
	config := r.Config
	hasPath := slices.ContainsFunc(config.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") })
	if !hasPath {
		config.Env = append([]string{defaultPath}, config.Env...)
	}
	return &v1.ConfigFile{
		Architecture: "amd64",
		OS:           "linux",
		Created:      v1.Time{Time: time.Unix(0, 0).UTC()},
		Config:       config,
		RootFS:       v1.RootFS{Type: "layers"},
	}
}
