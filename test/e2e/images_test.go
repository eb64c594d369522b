package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The commands on images agree with one another.
func TestImageCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.loadImage(boxWith(t, func(c *v1.Config) { c.Labels = map[string]string{"colour": "blue"} }), "blue:1")
	id := w.field("box", "{{.Id}}")
	short := strings.TrimPrefix(id, "sha256:")[:12]

	t.Run("images", func(t *testing.T) {
		w := w.in(t)
		if got := w.ok("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "box"); got != "box:latest "+short {
			t.Errorf("images: %q", got)
		}
		if got := w.ok("images", "-q", "--no-trunc", "box"); got != id {
			t.Errorf("images -q --no-trunc: %q, want %s", got, id)
		}
		if got := w.ok("images", "-q", "--filter", "label=colour=blue"); got == "" || got == short {
			t.Errorf("images --filter label: %q", got)
		}
		if got := w.ok("images", "--filter", "reference=b*:1", "--format", "{{.Repository}}"); got != "blue" {
			t.Errorf("images --filter reference: %q", got)
		}
		table := w.ok("images")
		if !strings.HasPrefix(table, "REPOSITORY") || strings.Count(table, "\n") != 2 {
			t.Errorf("table:\n%s", table)
		}
		for line := range strings.Lines(w.ok("images", "--format", "json")) {
			var row struct{ Repository, Tag, ID, Size string }
			if err := json.Unmarshal([]byte(line), &row); err != nil || row.Repository == "" || row.Size == "" {
				t.Errorf("json line %q: %v", line, err)
			}
		}
	})
	t.Run("tag and rmi", func(t *testing.T) {
		w := w.in(t)
		w.ok("tag", "box", "other/box:2")
		if got := w.field("other/box:2", "{{.Id}}"); got != id {
			t.Errorf("the tag is of %s", got)
		}
		if got := w.ok("rmi", "other/box:2"); got != "Untagged: other/box:2" {
			t.Errorf("rmi of one of two names: %q", got)
		}
		w.fails(1, "other/box:2", "rmi", "other/box:2")
		w.fails(1, "image nothing: not found", "tag", "nothing", "x:1")
		w.fails(1, "UPPER", "tag", "box", "UPPER:1")
		if got := w.field("box", "{{.Id}}"); got != id {
			t.Errorf("box is now %s", got)
		}
	})
	t.Run("inspect", func(t *testing.T) {
		w := w.in(t)
		var docs []struct {
			ID           string `json:"Id"`
			RepoTags     []string
			Architecture string
			Os           string
			Size         int64
			Config       struct{ Cmd, Env []string }
			RootFS       struct{ Layers []string }
		}
		if err := json.Unmarshal([]byte(w.ok("inspect", "box")), &docs); err != nil {
			t.Fatal(err)
		}
		d := docs[0]
		if len(docs) != 1 || d.ID != id || len(d.RepoTags) != 1 || d.RepoTags[0] != "box:latest" || d.Architecture != "amd64" ||
			d.Os != "linux" || d.Size <= 0 || len(d.RootFS.Layers) != 2 || len(d.Config.Cmd) == 0 {
			t.Errorf("inspect: %+v", d)
		}
		if got := w.ok("image", "inspect", "--format", "{{.Id}}", short); got != id {
			t.Errorf("by short id: %s", got)
		}
		r := w.manis("inspect", "box", "nothing-here")
		if r.code != 1 || !strings.Contains(r.stderr, "no such object: nothing-here") || !json.Valid([]byte(r.stdout)) {
			t.Error(r)
		}
	})
	t.Run("history", func(t *testing.T) {
		w := w.in(t)
		lines := strings.Split(w.ok("history", "--format", "{{.ID}} {{.Size}}", "box"), "\n")
		if len(lines) < 2 || !strings.HasPrefix(lines[0], short) || !strings.HasPrefix(lines[1], "<missing>") {
			t.Errorf("history: %q", lines)
		}
	})
	t.Run("save and load", func(t *testing.T) {
		w := w.in(t)
		for _, format := range []string{"docker", "oci"} {
			archive := filepath.Join(t.TempDir(), format+".tar")
			w.ok("save", "--format", format, "-o", archive, "box", "blue:1")
			other := newWorld(t)
			out := other.ok("load", "-i", archive)
			if !strings.Contains(out, "Loaded image: box:latest") || !strings.Contains(out, "Loaded image: blue:1") {
				t.Errorf("%s: load printed %q", format, out)
			}
			if got := other.field("box", "{{.Id}}"); got != id {
				t.Errorf("%s: box is %s there and %s here", format, got, id)
			}
		}
		w.fails(1, "image nothing: not found", "save", "-o", filepath.Join(t.TempDir(), "x.tar"), "nothing")
		if r := w.manis("save", "-o", "/no/such/dir/x.tar", "box"); r.code != 1 || !strings.Contains(r.stderr, "/no/such/dir") {
			t.Error(r)
		}
		broken := filepath.Join(t.TempDir(), "broken.tar")
		if err := os.WriteFile(broken, []byte("this is no archive"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := w.manis("load", "-i", broken); r.code != 1 || r.stderr == "" {
			t.Error(r)
		}
		w.fails(1, "no such file", "load", "-i", broken+"-not")
	})
	t.Run("in use", func(t *testing.T) {
		w := w.in(t)
		c := w.ok("create", "--name", "user", "blue:1", "true")
		r := w.manis("rmi", "blue:1")
		if r.code != 1 || !strings.Contains(r.stderr, c[:12]) {
			t.Errorf("rmi of an image in use: %s", r)
		}
		if got := w.ok("image", "prune", "-a", "-f"); strings.Contains(got, "blue") {
			t.Errorf("prune removed an image in use: %s", got)
		}
		w.ok("rm", "user")
		w.ok("rmi", "blue:1")
		w.fails(1, "blue:1", "rmi", "blue:1")
	})
	t.Run("prune", func(t *testing.T) {
		w := w.in(t)
		w.load("box")
		w.loadImage(boxWith(t, func(c *v1.Config) { c.Labels = map[string]string{"n": "1"} }), "moving:1")
		old := w.field("moving:1", "{{.Id}}")
		w.loadImage(boxWith(t, func(c *v1.Config) { c.Labels = map[string]string{"n": "2"} }), "moving:1")
		if got := w.ok("images", "-q", "--no-trunc", "--filter", "dangling=true"); got != old {
			t.Errorf("dangling: %q, want %s", got, old)
		}
		if r := w.manisIn("n\n", "image", "prune"); r.code != 0 || !strings.Contains(r.stdout, "[y/N]") {
			t.Errorf("prune that is not wanted: %s", r)
		}
		if got := w.ok("image", "prune", "-f"); !strings.Contains(got, old) {
			t.Errorf("prune: %q does not name %s", got, old)
		}
		w.ok("image", "prune", "-a", "-f")
		if got := w.ok("images", "-aq"); got != "" {
			t.Errorf("left after prune -a: %s", got)
		}
		if _, bytes := w.files("images/blobs"); bytes > 64<<10 {
			t.Errorf("%d bytes of blobs left after prune -a", bytes)
		}
	})
}

// The sum of what `system df` says is what is on the disk, and what it calls reclaimable
// is what a prune gives back.
func TestDiskUsageAddsUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.loadImage(boxWith(t, nil, file{name: "large", body: strings.Repeat("0123456789abcdef", 1<<16)}), "large:1")
	w.ok("volume", "create", "data")
	w.ok("run", "--name", "c", "-v", "data:/data", "box", "dd", "if=/dev/zero", "of=/data/x", "bs=1M", "count=3")
	type row struct {
		Type, TotalCount, Active, Size, Reclaimable string
	}
	rows := make(map[string]row)
	for line := range strings.Lines(w.ok("system", "df", "--format", "json")) {
		var r row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		rows[r.Type] = r
	}
	if r := rows["Images"]; r.TotalCount != "2" || r.Active != "1" {
		t.Errorf("images: %+v", r)
	}
	if r := rows["Containers"]; r.TotalCount != "1" || r.Active != "0" {
		t.Errorf("containers: %+v", r)
	}
	if r := rows["Local Volumes"]; r.TotalCount != "1" || r.Active != "1" {
		t.Errorf("volumes: %+v", r)
	}
	for what, dir := range map[string]string{"Images": "images", "Containers": "containers", "Local Volumes": "volumes"} {
		_, onDisk := w.files(dir)
		said := parseSize(t, rows[what].Size)
		// Sizes are printed with three digits.
		if diff := float64(said) - float64(onDisk); diff > 0.02*float64(onDisk)+64<<10 || diff < -0.02*float64(onDisk)-64<<10 {
			t.Errorf("%s: system df says %s, on the disk are %d bytes", what, rows[what].Size, onDisk)
		}
	}
	_, before := w.files(".")
	w.ok("system", "prune", "-a", "-f", "--volumes")
	_, after := w.files(".")
	if after >= before {
		t.Errorf("%d bytes before prune, %d after", before, after)
	}
	if got := w.ok("ps", "-aq") + w.ok("images", "-aq"); got != "" {
		t.Errorf("left after system prune -a: %s", got)
	}
}

// An image whose manifest is damaged is named, with what to do, and is in no other's way.
func TestDamagedImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.loadImage(boxWith(t, func(c *v1.Config) { c.Labels = map[string]string{"colour": "blue"} }), "blue:1")
	b, err := os.ReadFile(filepath.Join(w.root, "images", "catalog.json"))
	if err != nil {
		t.Fatal(err)
	}
	var catalog struct {
		Images map[string]struct{ Manifest v1.Hash }
	}
	if err := json.Unmarshal(b, &catalog); err != nil {
		t.Fatal(err)
	}
	id := w.field("blue:1", "{{.Id}}")
	manifest := filepath.Join(w.root, "images", "blobs", "sha256", catalog.Images[id].Manifest.Hex)
	if err := os.Truncate(manifest, 100); err != nil {
		t.Fatal(err)
	}
	r := w.manis("images", "--format", "{{.Repository}}")
	if r.code != 0 || strings.TrimSpace(r.stdout) != "box" || !strings.Contains(r.stderr, "image blue:1 is damaged") || !strings.Contains(r.stderr, "manis rmi blue:1") {
		t.Errorf("images: %s", r)
	}
	w.fails(125, "damaged", "run", "--rm", "blue:1", "true")
	w.ok("rmi", "blue:1")
	if r := w.manis("images", "-q"); r.code != 0 || r.stderr != "" || strings.Count(r.stdout, "\n") != 1 {
		t.Errorf("images after rmi: %s", r)
	}
	w.ok("prune", "-f")
	w.loadImage(boxWith(t, func(c *v1.Config) { c.Labels = map[string]string{"colour": "blue"} }), "blue:1")
	if got := w.field("blue:1", "{{.Id}}"); got != id {
		t.Errorf("loaded again: %s, was %s", got, id)
	}
}
