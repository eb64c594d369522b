package storage

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Errors of the volume store.
var (
	ErrNoVolume     = errors.New("no such volume")
	ErrVolumeInUse  = errors.New("volume is in use")
	ErrVolumeExists = errors.New("volume exists already")
)

// AnonymousLabel marks a volume that was made for a container without a name, as in docker.
const AnonymousLabel = "com.docker.volume.anonymous"

// VolumeInfo is what is known of a volume. Its JSON is docker's.
type VolumeInfo struct {
	CreatedAt  time.Time
	Driver     string // "local"
	Labels     map[string]string
	Mountpoint string // the directory of the host that holds the content
	Name       string
	Options    map[string]string // none
	Scope      string            // "local"
}

// Anonymous reports whether the volume was made without a name.
func (v VolumeInfo) Anonymous() bool {
	_, ok := v.Labels[AnonymousLabel]
	return ok
}

// Volumes is the store of named volumes. A volume lives from Create to Remove; while containers use it
// (AddUser, RemoveUser) it cannot be removed. Its content is a directory that is exported to VMs with
// ownership kept in extended attributes, so files of any user of a container belong to one user of the host.
//
// On disk a volume is a directory:
//
//	volumes/NAME/volume.json   what VolumeInfo says
//	volumes/NAME/data/         the content
//	volumes/NAME/users/ID      one empty file for each container that uses it
//	volumes/NAME/copying       the image's content is being copied in
//	volumes/NAME/populated     and that is complete
//
// It appears and disappears by a rename, so that it is there entirely or not at all.
type Volumes struct{ root string }

const (
	volumesDir = "volumes"
	newPrefix  = ".new-"
	gonePrefix = ".gone-"
	infoFile   = "volume.json"
	dataDir    = "data"
	usersDir   = "users"
)

// OpenVolumes opens the store at root, which is made if need be, and removes what a process that died left
// unfinished in it.
func OpenVolumes(ctx context.Context, root string) (*Volumes, error) {
	v := &Volumes{root: root}
	if err := os.MkdirAll(v.path(), 0o700); err != nil {
		return nil, fmt.Errorf("open volume store: %w", err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("open volume store: %w", err)
	}
	if !slices.ContainsFunc(entries, unfinished) {
		return v, nil
	}
	lock, err := v.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if entries, err = os.ReadDir(root); err != nil {
		return nil, fmt.Errorf("open volume store: %w", err)
	}
	for _, e := range entries {
		if !unfinished(e) {
			continue
		}
		if err := discard(filepath.Join(root, e.Name())); err != nil {
			return nil, fmt.Errorf("open volume store: %w", err)
		}
	}
	return v, nil
}

func unfinished(e fs.DirEntry) bool {
	return strings.HasPrefix(e.Name(), newPrefix) || strings.HasPrefix(e.Name(), gonePrefix)
}

func (v *Volumes) path(elem ...string) string {
	return filepath.Join(append([]string{v.root, volumesDir}, elem...)...)
}

// lock is held by whoever changes which volumes there are or who uses them.
func (v *Volumes) lock(ctx context.Context) (*os.File, error) {
	f, err := lockFile(ctx, filepath.Join(v.root, "lock"))
	if err != nil {
		return nil, fmt.Errorf("volume store: %w", err)
	}
	return f, nil
}

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

const maxName = 200 // bytes; a file name can have 255

func checkVolumeName(name string) error {
	if !namePattern.MatchString(name) || len(name) > maxName {
		return fmt.Errorf("%q is not a volume name: want [a-zA-Z0-9][a-zA-Z0-9_.-]*, or an absolute path for a directory of the host", name)
	}
	return nil
}

// Create makes a volume. An empty name makes an anonymous one with 64 hexadecimal digits. A name that exists
// is an ErrVolumeExists together with the volume that is there.
func (v *Volumes) Create(ctx context.Context, name string, labels map[string]string) (VolumeInfo, error) {
	info := VolumeInfo{CreatedAt: time.Now().UTC().Truncate(time.Second), Driver: "local", Scope: "local"}
	info.Labels = map[string]string{}
	for k, l := range labels {
		info.Labels[k] = l
	}
	if name == "" {
		var id [32]byte
		rand.Read(id[:])
		name = hex.EncodeToString(id[:])
		info.Labels[AnonymousLabel] = ""
	}
	if err := checkVolumeName(name); err != nil {
		return VolumeInfo{}, err
	}
	info.Name = name
	info.Mountpoint = v.path(name, dataDir)
	lock, err := v.lock(ctx)
	if err != nil {
		return VolumeInfo{}, err
	}
	defer lock.Close()
	if there, err := v.Get(name); !errors.Is(err, ErrNoVolume) {
		if err == nil {
			err = fmt.Errorf("%w: %s", ErrVolumeExists, name)
		}
		return there, err
	}
	if err := v.create(info); err != nil {
		return VolumeInfo{}, fmt.Errorf("create volume %s: %w", name, err)
	}
	return info, nil
}

func (v *Volumes) create(info VolumeInfo) error {
	work, err := os.MkdirTemp(v.root, newPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) // gone already when all is well
	for _, d := range []string{dataDir, usersDir} {
		if err := os.Mkdir(filepath.Join(work, d), 0o755); err != nil {
			return err
		}
	}
	content, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	if err := writeDurably(filepath.Join(work, infoFile), content); err != nil {
		return err
	}
	if err := syncDir(work); err != nil {
		return err
	}
	if err := os.Rename(work, v.path(info.Name)); err != nil {
		return err
	}
	return syncDir(v.path())
}

func writeDurably(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

// Ensure returns the volume of a name, and makes it if there is none.
func (v *Volumes) Ensure(ctx context.Context, name string) (VolumeInfo, error) {
	info, err := v.Get(name)
	if errors.Is(err, ErrNoVolume) {
		info, err = v.Create(ctx, name, nil)
	}
	if errors.Is(err, ErrVolumeExists) {
		err = nil
	}
	return info, err
}

// Get returns a volume, or ErrNoVolume.
func (v *Volumes) Get(name string) (VolumeInfo, error) {
	if err := checkVolumeName(name); err != nil {
		return VolumeInfo{}, fmt.Errorf("%w: %w", ErrNoVolume, err)
	}
	content, err := os.ReadFile(v.path(name, infoFile))
	if errors.Is(err, fs.ErrNotExist) {
		return VolumeInfo{}, fmt.Errorf("%w: %s", ErrNoVolume, name)
	}
	var info VolumeInfo
	if err == nil {
		err = json.Unmarshal(content, &info)
	}
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("read volume %s: %w", name, err)
	}
	info.Name, info.Mountpoint = name, v.path(name, dataDir) // true also if the store was moved
	return info, nil
}

// List returns all volumes by name.
func (v *Volumes) List() ([]VolumeInfo, error) {
	entries, err := os.ReadDir(v.path())
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	volumes := make([]VolumeInfo, 0, len(entries))
	for _, e := range entries {
		info, err := v.Get(e.Name())
		if errors.Is(err, ErrNoVolume) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, info)
	}
	return volumes, nil
}

// Remove deletes a volume and its content. While containers use it, it is an ErrVolumeInUse that names them.
func (v *Volumes) Remove(ctx context.Context, name string) error {
	gone, err := v.detach(ctx, name)
	if err == nil {
		err = discard(gone)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

// detach takes an unused volume out of the store and returns where it is now. To delete it may take long, and
// nobody has to wait for it: it is gone already.
func (v *Volumes) detach(ctx context.Context, name string) (string, error) {
	lock, err := v.lock(ctx)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := v.Get(name); err != nil {
		return "", err
	}
	users, err := v.Users(name)
	if err != nil {
		return "", err
	}
	if len(users) > 0 {
		return "", fmt.Errorf("%w - [%s]", ErrVolumeInUse, strings.Join(users, ", "))
	}
	gone, err := os.MkdirTemp(v.root, gonePrefix)
	if err != nil {
		return "", err
	}
	if err := os.Rename(v.path(name), filepath.Join(gone, name)); err != nil {
		os.Remove(gone)
		return "", err
	}
	return gone, syncDir(v.path())
}

// Pruned says what Prune removed.
type Pruned struct {
	Names []string
	Bytes int64 // that were freed
}

// Prune removes the volumes that no container uses: the anonymous ones, or all with all set; of these only
// those that keep, if not nil, does not keep.
func (v *Volumes) Prune(ctx context.Context, all bool, keep func(VolumeInfo) bool) (Pruned, error) {
	volumes, err := v.List()
	if err != nil {
		return Pruned{}, err
	}
	var pruned Pruned
	for _, info := range volumes {
		if !all && !info.Anonymous() || keep != nil && keep(info) {
			continue
		}
		bytes, err := v.Usage(info.Name)
		if err == nil {
			err = v.Remove(ctx, info.Name)
		}
		switch {
		case errors.Is(err, ErrVolumeInUse), errors.Is(err, ErrNoVolume): // used or removed meanwhile
		case err != nil:
			return pruned, err
		default:
			pruned.Names = append(pruned.Names, info.Name)
			pruned.Bytes += bytes
		}
	}
	return pruned, nil
}

// AddUser records that a container uses a volume. Doing it again does nothing.
func (v *Volumes) AddUser(ctx context.Context, name, container string) error {
	if !namePattern.MatchString(container) || len(container) > maxName {
		return fmt.Errorf("use volume %s: %q is not a container's id", name, container)
	}
	lock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := v.Get(name); err != nil {
		return err
	}
	f, err := os.OpenFile(v.path(name, usersDir, container), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("use volume %s: %w", name, err)
	}
	f.Close()
	return syncDir(v.path(name, usersDir))
}

// RemoveUser is the reverse of AddUser. A volume or user that is not there is no error: the container is gone.
func (v *Volumes) RemoveUser(ctx context.Context, name, container string) error {
	if !namePattern.MatchString(container) || checkVolumeName(name) != nil {
		return nil
	}
	lock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.Remove(v.path(name, usersDir, container)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release volume %s: %w", name, err)
	}
	return nil
}

// Users returns the containers that use a volume.
func (v *Volumes) Users(name string) ([]string, error) {
	if err := checkVolumeName(name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoVolume, err)
	}
	entries, err := os.ReadDir(v.path(name, usersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoVolume, name)
	}
	if err != nil {
		return nil, fmt.Errorf("users of volume %s: %w", name, err)
	}
	users := make([]string, len(entries))
	for i, e := range entries {
		users[i] = e.Name()
	}
	return users, nil
}

// DropUsers removes the users that alive does not know, for containers that went without saying so.
func (v *Volumes) DropUsers(ctx context.Context, alive func(container string) bool) error {
	lock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	volumes, err := v.List()
	if err != nil {
		return err
	}
	for _, info := range volumes {
		users, err := v.Users(info.Name)
		if err != nil {
			return err
		}
		for _, u := range users {
			if !alive(u) {
				if err := os.Remove(v.path(info.Name, usersDir, u)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("release volume %s: %w", info.Name, err)
				}
			}
		}
	}
	return nil
}
