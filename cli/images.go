package cli

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"manis/cli/declare"
	"manis/cli/filter"
	"manis/cli/present"
	"manis/image"
)

type imagesFlags struct {
	all, digests, noTrunc, quiet bool
	format                       string
	filters                      []string
}

var imageFilters = []string{"dangling", "label", "label!", "before", "since", "reference", "until"}

func (a *app) imagesCommand() *cobra.Command {
	var f imagesFlags
	cmd := &cobra.Command{
		Use:               "images [OPTIONS] [REPOSITORY[:TAG]]",
		Aliases:           []string{"list", "ls"},
		Short:             "List images",
		Args:              needs(0, 1),
		ValidArgsFunction: a.firstImage,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				f.filters = append(f.filters, "reference="+args[0])
			}
			return a.listImages(f)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all images")
	fs.BoolVar(&f.digests, "digests", false, "Show digests")
	fs.VarP((*declare.List)(&f.filters), "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", formatHelp)
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only show image IDs")
	return cmd
}

// imageRow is one name of an image. Field names are docker's.
type imageRow struct {
	Containers   string
	CreatedAt    string
	CreatedSince string
	Digest       string
	ID           string
	Repository   string
	SharedSize   string
	Size         string
	Tag          string
	UniqueSize   string
	VirtualSize  string
}

var imageHeader = imageRow{
	Containers: "CONTAINERS", CreatedAt: "CREATED AT", CreatedSince: "CREATED", Digest: "DIGEST", ID: "IMAGE ID",
	Repository: "REPOSITORY", SharedSize: "SHARED SIZE", Size: "SIZE", Tag: "TAG", UniqueSize: "UNIQUE SIZE", VirtualSize: "SIZE",
}

func (a *app) listImages(f imagesFlags) error {
	set, err := filter.Parse(f.filters, imageFilters...)
	if err != nil {
		return err
	}
	images, err := a.images()
	if err != nil {
		return err
	}
	all, err := a.readable(images.List())
	if err != nil {
		return err
	}
	match, err := imageFilter(images, set, time.Now())
	if err != nil {
		return err
	}
	var rows []imageRow
	var seen []string
	for _, img := range all {
		if !match(img) {
			continue
		}
		if f.quiet {
			if id := imageID(img, f.noTrunc); !slices.Contains(seen, id) {
				seen = append(seen, id)
				fmt.Fprintln(a.out, id)
			}
			continue
		}
		rows = append(rows, imageRows(img, set, f, time.Now())...)
	}
	if f.quiet {
		return nil
	}
	table := `{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}`
	if f.digests {
		table = `{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}`
	}
	return present.List(a.out, f.format, table, imageHeader, rows)
}

// readable takes a list of images as it is. Those that are too damaged to be in it are
// told of on stderr, with what to do.
func (a *app) readable(images []*image.Image, err error) ([]*image.Image, error) {
	var damaged *image.DamagedError
	if !errors.As(err, &damaged) {
		return images, err
	}
	for _, d := range damaged.Images {
		ref, what := d.ShortID(), d.ShortID()
		if len(d.Names) > 0 {
			what = strings.Join(d.Names, ", ")
		}
		if len(d.Names) == 1 {
			ref = d.Names[0]
		}
		a.note("image %s is damaged and left out: %s (manis rmi %s removes it; then pull or load it again)", what, text(d.Err), ref)
	}
	return images, nil
}

func imageID(img *image.Image, whole bool) string {
	if whole {
		return img.ID
	}
	return img.ShortID()
}

func imageRows(img *image.Image, set filter.Set, f imagesFlags, now time.Time) []imageRow {
	const none = "<none>"
	base := imageRow{
		Containers: strconv.Itoa(len(img.Users)), ID: imageID(img, f.noTrunc), Repository: none, Tag: none, Digest: none,
		SharedSize: "N/A", UniqueSize: "N/A", Size: humanSize(img.Size), VirtualSize: humanSize(img.Size),
		CreatedAt: img.Created.Local().Format(timeFormat), CreatedSince: since(img.Created, now),
	}
	digests := make(map[string]string)
	for _, d := range img.RepoDigests {
		repo, digest, _ := strings.Cut(d, "@")
		digests[repo] = digest
	}
	var rows []imageRow
	for _, name := range img.Names {
		if !referenceMatches(set, name) {
			continue
		}
		r := base
		r.Repository, r.Tag = splitTag(name)
		if d := digests[r.Repository]; d != "" {
			r.Digest = d
		}
		rows = append(rows, r)
	}
	if len(img.Names) == 0 && !set.Has("reference") {
		r := base
		for repo, digest := range digests {
			r.Repository, r.Digest = repo, digest
			break
		}
		rows = append(rows, r)
	}
	return rows
}

// since is ago, but for the times that reproducible builds write.
func since(t, now time.Time) string {
	if t.Unix() <= 0 {
		return "N/A"
	}
	return ago(t, now)
}

func splitTag(name string) (repo, tag string) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, "<none>"
	}
	return name[:i], name[i+1:]
}

// referenceMatches applies --filter reference: a pattern on the name with or
// without its tag.
func referenceMatches(set filter.Set, name string) bool {
	repo, _ := splitTag(name)
	return set.Any("reference", func(pattern string) bool {
		for _, s := range []string{name, repo, "docker.io/" + name, "docker.io/library/" + name, "docker.io/" + repo, "docker.io/library/" + repo} {
			if ok, err := path.Match(pattern, s); err == nil && ok {
				return true
			}
		}
		return false
	})
}

// imageFilter makes the test of images --filter and of prune.
func imageFilter(images *image.Store, set filter.Set, now time.Time) (func(*image.Image) bool, error) {
	dangling, asked, err := set.Bool("dangling")
	if err != nil {
		return nil, err
	}
	created := func(key string) (times []time.Time, err error) {
		for _, ref := range set[key] {
			img, err := images.Resolve(ref)
			if err != nil {
				return nil, err
			}
			times = append(times, img.Created)
		}
		return times, nil
	}
	before, err := created("before")
	if err != nil {
		return nil, err
	}
	since, err := created("since")
	if err != nil {
		return nil, err
	}
	for _, s := range set["until"] {
		t, err := filter.Time(s, now)
		if err != nil {
			return nil, err
		}
		before = append(before, t)
	}
	for _, pattern := range set["reference"] {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("invalid filter \"reference=%s\": %w", pattern, err)
		}
	}
	return func(img *image.Image) bool {
		return (!asked || dangling == (len(img.Names) == 0)) &&
			set.Labels("label", img.Config.Config.Labels) && set.NoLabels("label!", img.Config.Config.Labels) &&
			!slices.ContainsFunc(before, func(t time.Time) bool { return !img.Created.Before(t) }) &&
			!slices.ContainsFunc(since, func(t time.Time) bool { return !img.Created.After(t) }) &&
			(!set.Has("reference") || slices.ContainsFunc(img.Names, func(n string) bool { return referenceMatches(set, n) }))
	}, nil
}

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
		Short:             "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
		Args:              needs(2, 2),
		ValidArgsFunction: a.imageNames,
		RunE: func(_ *cobra.Command, args []string) error {
			images, err := a.images()
			if err != nil {
				return err
			}
			return images.Tag(args[0], args[1])
		},
	}
}

func (a *app) rmiCommand() *cobra.Command {
	var force, noPrune bool
	cmd := &cobra.Command{
		Use:               "rmi [OPTIONS] IMAGE [IMAGE...]",
		Aliases:           []string{"remove", "rm"},
		Short:             "Remove one or more images",
		Args:              needs(1, -1),
		ValidArgsFunction: a.imageNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := a.images()
			if err != nil {
				return err
			}
			a.dropUsers(cmd.Context())
			return a.each(args, func(ref string) error {
				steps, err := images.Remove(ref, force)
				for _, s := range steps {
					fmt.Fprintln(a.out, s)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Force removal of the image")
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "Do not delete untagged parents (there are none)")
	cmd.Flags().MarkHidden("no-prune")
	return cmd
}

type historyRow struct {
	Comment      string
	CreatedAt    string
	CreatedBy    string
	CreatedSince string
	ID           string
	Size         string
}

var historyHeader = historyRow{
	Comment: "COMMENT", CreatedAt: "CREATED AT", CreatedBy: "CREATED BY", CreatedSince: "CREATED", ID: "IMAGE", Size: "SIZE",
}

func (a *app) historyCommand() *cobra.Command {
	var human, noTrunc, quiet bool
	var format string
	cmd := &cobra.Command{
		Use:               "history [OPTIONS] IMAGE",
		Short:             "Show the history of an image",
		Args:              needs(1, 1),
		ValidArgsFunction: a.firstImage,
		RunE: func(_ *cobra.Command, args []string) error {
			images, err := a.images()
			if err != nil {
				return err
			}
			img, err := images.Resolve(args[0])
			if err != nil {
				return err
			}
			rows := historyRows(img, noTrunc, human, time.Now())
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(a.out, r.ID)
				}
				return nil
			}
			return present.List(a.out, format, `{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}`, historyHeader, rows)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&format, "format", "", formatHelp)
	fs.BoolVarP(&human, "human", "H", true, "Print sizes and dates in human readable format")
	fs.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	return cmd
}

// historyRows are the steps of an image's making, newest first. Sizes are of the
// layers as they are stored.
func historyRows(img *image.Image, noTrunc, human bool, now time.Time) []historyRow {
	var rows []historyRow
	layer := 0
	for i, h := range img.Config.History {
		r := historyRow{ID: "<missing>", CreatedBy: printable(h.CreatedBy), Comment: printable(h.Comment)}
		if i == len(img.Config.History)-1 {
			r.ID = imageID(img, noTrunc)
		}
		if !noTrunc {
			r.CreatedBy = present.Ellipsis(r.CreatedBy, 45)
		}
		r.CreatedAt = h.Created.UTC().Format(time.RFC3339)
		r.CreatedSince = r.CreatedAt
		if human {
			r.CreatedSince = since(h.Created.Time, now)
		}
		var size int64
		if !h.EmptyLayer {
			if layer < len(img.Manifest.Layers) {
				size = img.Manifest.Layers[layer].Size
			}
			layer++
		}
		r.Size = strconv.FormatInt(size, 10)
		if human {
			r.Size = humanSize(size)
		}
		rows = append(rows, r)
	}
	slices.Reverse(rows)
	return rows
}
