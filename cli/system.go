package cli

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"manis/cli/present"
	"manis/place"
	"manis/version"
)

// dfRow is one line of system df. Field names are docker's.
type dfRow struct {
	Active      string
	Reclaimable string
	Size        string
	TotalCount  string
	Type        string
}

var dfHeader = dfRow{Active: "ACTIVE", Reclaimable: "RECLAIMABLE", Size: "SIZE", TotalCount: "TOTAL", Type: "TYPE"}

func (a *app) dfCommand() *cobra.Command {
	var format string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "df [OPTIONS]",
		Short: "Show disk usage",
		Args:  needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if verbose {
				return a.dfVerbose(cmd.Context())
			}
			rows, err := a.df(cmd.Context())
			if err != nil {
				return err
			}
			return present.List(a.out, format, `{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}`, dfHeader, rows)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", formatHelp)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	return cmd
}

func newDfRow(kind string, total, active int, size, reclaimable int64) dfRow {
	share := ""
	if size > 0 {
		share = fmt.Sprintf(" (%d%%)", reclaimable*100/size)
	}
	return dfRow{Type: kind, TotalCount: strconv.Itoa(total), Active: strconv.Itoa(active), Size: humanSize(size), Reclaimable: humanSize(reclaimable) + share}
}

func (a *app) df(ctx context.Context) ([]dfRow, error) {
	images, err := a.images()
	if err != nil {
		return nil, err
	}
	usage, err := images.Usage()
	if err != nil {
		return nil, err
	}
	used := 0
	for _, u := range usage.Images {
		if u.Users > 0 {
			used++
		}
	}
	rows := []dfRow{newDfRow("Images", len(usage.Images), used, usage.Total, usage.Reclaimable)}

	all, err := a.list()
	if err != nil {
		return nil, err
	}
	var size, free int64
	live := 0
	for _, l := range all {
		n := writtenBytes(l.c)
		size += n
		if l.st.Status.Live() {
			live++
		} else {
			free += n
		}
	}
	rows = append(rows, newDfRow("Containers", len(all), live, size, free))

	store, err := a.volumes(ctx)
	if err != nil {
		return nil, err
	}
	volumes, err := store.List()
	if err != nil {
		return nil, err
	}
	size, free, used = 0, 0, 0
	for _, v := range volumes {
		n, err := store.Usage(v.Name)
		if err != nil {
			continue // removed meanwhile
		}
		size += n
		if users, err := store.Users(v.Name); err == nil && len(users) > 0 {
			used++
		} else {
			free += n
		}
	}
	rows = append(rows, newDfRow("Local Volumes", len(volumes), used, size, free))
	saved, err := a.snapshotUsage()
	if err != nil {
		return nil, err
	}
	size = 0
	for _, s := range saved {
		size += s.bytes
	}
	return append(rows, newDfRow("Snapshots", len(saved), 0, size, 0)), nil
}

// dfVerbose lists every image, container and volume.
func (a *app) dfVerbose(ctx context.Context) error {
	images, err := a.images()
	if err != nil {
		return err
	}
	usage, err := images.Usage()
	if err != nil {
		return err
	}
	list, err := a.readable(images.List())
	if err != nil {
		return err
	}
	var imageRows_ []imageRow
	for _, img := range list {
		rows := imageRows(img, nil, imagesFlags{}, time.Now())
		for _, u := range usage.Images {
			for i := range rows {
				if u.ID == img.ID {
					rows[i].UniqueSize, rows[i].SharedSize = humanSize(u.Unique), humanSize(u.Shared)
					rows[i].Size = humanSize(u.Unique + u.Shared)
				}
			}
		}
		imageRows_ = append(imageRows_, rows...)
	}
	fmt.Fprint(a.out, "Images space usage:\n\n")
	if err := present.List(a.out, "", `{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}`, imageHeader, imageRows_); err != nil {
		return err
	}
	all, err := a.list()
	if err != nil {
		return err
	}
	var containers []psRow
	for _, l := range all {
		containers = append(containers, newPsRow(l, false, true, time.Now()))
	}
	fmt.Fprint(a.out, "\nContainers space usage:\n\n")
	if err := present.List(a.out, "", `{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}`, psHeader, containers); err != nil {
		return err
	}
	store, err := a.volumes(ctx)
	if err != nil {
		return err
	}
	volumes, err := store.List()
	if err != nil {
		return err
	}
	var rows []volumeRow
	for _, v := range volumes {
		n, err := store.Usage(v.Name)
		if err != nil {
			continue
		}
		users, _ := store.Users(v.Name)
		rows = append(rows, volumeRow{Name: v.Name, Links: strconv.Itoa(len(users)), Size: humanSize(n)})
	}
	fmt.Fprint(a.out, "\nLocal Volumes space usage:\n\n")
	return present.List(a.out, "", `{{.Name}}\t{{.Links}}\t{{.Size}}`, volumeHeader, rows)
}

// infoShape is what info --format sees.
type infoShape struct {
	ServerVersion     string
	Containers        int
	ContainersRunning int
	ContainersPaused  int
	ContainersStopped int
	Images            int
	Driver            string
	LoggingDriver     string
	KernelVersion     string
	OperatingSystem   string
	OSType            string
	Architecture      string
	NCPU              int
	MemTotal          uint64
	Name              string
	Rootless          bool
	ManisRootDir      string
	RunDir            string
	CacheDir          string
	ConfigDir         string
	GuestDir          string
	Warnings          []string
}

func (a *app) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "info [OPTIONS]",
		Short: "Display system-wide information",
		Args:  needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := a.info()
			if err != nil {
				return err
			}
			if format == "json" {
				format = "{{json .}}"
			}
			if format != "" {
				return present.Inspect(a.out, format, []any{info})
			}
			a.showInfo(info)
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return cmd
}

func (a *app) info() (infoShape, error) {
	places, err := a.places()
	if err != nil {
		return infoShape{}, err
	}
	i := infoShape{
		ServerVersion: version.Version, Driver: "erofs", LoggingDriver: "json-file", OSType: "linux",
		Architecture: runtime.GOARCH, NCPU: runtime.NumCPU(), Rootless: unix.Geteuid() != 0,
		ManisRootDir: places.Root, RunDir: places.Run, CacheDir: places.Cache, ConfigDir: places.Config,
	}
	all, err := a.list()
	if err != nil {
		return i, err
	}
	i.Containers = len(all)
	for _, l := range all {
		switch {
		case isPaused(l.st.Status):
			i.ContainersPaused++
		case l.st.Status.Live():
			i.ContainersRunning++
		default:
			i.ContainersStopped++
		}
	}
	images, err := a.images()
	if err != nil {
		return i, err
	}
	list, err := a.readable(images.List())
	if err != nil {
		return i, err
	}
	i.Images = len(list)
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		i.KernelVersion = unix.ByteSliceToString(uts.Release[:])
		i.Name = unix.ByteSliceToString(uts.Nodename[:])
		i.OperatingSystem = unix.ByteSliceToString(uts.Sysname[:])
	}
	var sys unix.Sysinfo_t
	if unix.Sysinfo(&sys) == nil {
		i.MemTotal = uint64(sys.Totalram) * uint64(sys.Unit)
	}
	if guest, err := place.FindGuest(); err == nil {
		i.GuestDir = guest.Dir
	} else {
		i.Warnings = append(i.Warnings, err.Error())
	}
	return i, nil
}

func (a *app) showInfo(i infoShape) {
	fmt.Fprintf(a.out, `Manis version: %s
Containers: %d
 Running: %d
 Paused: %d
 Stopped: %d
Images: %d
Storage Driver: %s
Logging Driver: %s
Rootless: %v
Host Kernel Version: %s
OSType: %s
Architecture: %s
CPUs: %d
Total Memory: %s
Name: %s
Manis Root Dir: %s
Run Dir: %s
Cache Dir: %s
Configuration Dir: %s
Guest Image: %s
`, i.ServerVersion, i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped, i.Images, i.Driver, i.LoggingDriver,
		i.Rootless, i.KernelVersion, i.OSType, i.Architecture, i.NCPU, units.BytesSize(float64(i.MemTotal)), i.Name,
		i.ManisRootDir, i.RunDir, i.CacheDir, i.ConfigDir, i.GuestDir)
	for _, w := range i.Warnings {
		a.note("WARNING: %s", w)
	}
}
