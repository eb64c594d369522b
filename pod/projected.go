package pod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/origin"
	"manis/vmm"
)

// Bounds of the volumes that are copied into a machine.
const (
	// maxContent is the most bytes of files that a request carries: of one volume, or of all that a container has. A message of
	// ttrpc's is at most 4 MiB, and a ConfigMap or Secret at most 1 MiB.
	maxContent = 3 << 20
	// maxProjected and maxProjectedDepth are the agent's, too.
	maxProjected      = 4096
	maxProjectedDepth = 64
	// projectedCost is what a file takes of a request beside its content and its path.
	projectedCost = 64
)

// dataLink is the link to the directory that holds the present files (Kubernetes, pkg/volume/util/atomic_writer.go).
const dataLink = "..data"

// errNotProjected: the kubelet has not written it, or not yet.
var errNotProjected = errors.New("it has not the form that the kubelet gives it: there is no link " + dataLink + " to a directory in it")

// volume is a directory of the host's.
type volume struct {
	dir string
	is  *origin.Origin // what was allowed of it; nil: whatever is there
}

func (v volume) open() (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	if v.is != nil {
		return v.is.Open(flags)
	}
	return os.OpenFile(v.dir, flags, 0)
}

// readTries is how often a volume is read that changes meanwhile.
const readTries = 20

// readProjected reads a volume as it was at one moment, and tells how much of a request it takes, at most room. Links are
// taken as what they are, and owners are the machine's. Files that the kubelet is about to put in place of the present ones are not in it.
func readProjected(v volume, ids *vmm.IDMap, room int) (content, error) {
	var err error
	for range readTries {
		r := &projectedReader{ids: ids, room: room}
		var changed bool
		if changed, err = r.read(v); err == nil && !changed {
			return content{r.files, room - r.room, r.changing}, nil
		}
		if err != nil && !changed {
			return content{}, err
		}
	}
	if err == nil {
		err = errors.New("it changes all the time")
	}
	return content{}, err
}

// content is what a volume holds at one moment.
type content struct {
	files []*agent.ProjectedFile
	size  int // bytes that it takes of a request
	// changing says that the kubelet is not done: there is a directory besides that of the present files. It makes the new
	// one first and removes the old one last (Kubernetes, pkg/volume/util/atomic_writer.go).
	changing bool
}

// projectedReader collects the files of a volume.
type projectedReader struct {
	files    []*agent.ProjectedFile
	ids      *vmm.IDMap
	room     int
	changing bool
}

// read reads it once, and reports whether it has changed meanwhile: then an error means nothing.
func (r *projectedReader) read(v volume) (changed bool, err error) {
	top, err := v.open()
	if err != nil {
		return false, err
	}
	defer top.Close()
	fd := int(top.Fd())
	now, err := readLink(fd, dataLink)
	if err != nil || !filepath.IsLocal(now) || strings.Contains(now, "/") || now == "." {
		return false, errNotProjected
	}
	if err = r.add(fd, ".", "."); err == nil {
		err = r.list(top, now)
	}
	after, e := readLink(fd, dataLink)
	return e != nil || after != now, err
}

// list takes the volume's directory: the present files and the links to them.
func (r *projectedReader) list(top *os.File, now string) error {
	names, err := namesOf(top)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "..") && name != now && name != dataLink {
			r.changing = true
			continue
		}
		if err := r.tree(int(top.Fd()), name, name, 1); err != nil {
			return err
		}
	}
	return nil
}

func namesOf(dir *os.File) ([]string, error) {
	names, err := dir.Readdirnames(maxProjected + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(names) > maxProjected {
		return nil, tooManyFiles()
	}
	slices.Sort(names)
	return names, nil
}

func tooManyFiles() error { return fmt.Errorf("it has more than %d files", maxProjected) }

// tree takes a file, and what is in it.
func (r *projectedReader) tree(dir int, name, path string, depth int) error {
	if err := r.add(dir, name, path); err != nil {
		return err
	}
	if r.files[len(r.files)-1].Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if depth >= maxProjectedDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxProjectedDepth)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	sub := os.NewFile(uintptr(fd), path)
	defer sub.Close()
	names, err := namesOf(sub)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := r.tree(fd, n, path+"/"+n, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// add takes one file.
func (r *projectedReader) add(dir int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if len(r.files) > maxProjected {
		return tooManyFiles()
	}
	f := &agent.ProjectedFile{Path: path, Mode: st.Mode, Uid: st.Uid, Gid: st.Gid}
	if r.ids != nil {
		f.Uid, f.Gid = seen(st.Uid, r.ids.Users), seen(st.Gid, r.ids.Groups)
	}
	if err := r.charge(len(path) + projectedCost); err != nil {
		return err
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		f.Content, err = r.content(dir, name)
	case unix.S_IFLNK:
		var target string
		target, err = readLink(dir, name)
		f.Content = []byte(target)
		if err == nil {
			err = r.charge(len(target))
		}
	default:
		return fmt.Errorf("%s in it is neither a file, nor a directory, nor a link", path)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// The time of the volume's own directory, and of links, says nothing.
	if strings.HasPrefix(path, "..") && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		f.MtimeUnixNs = st.Mtim.Nano()
	}
	r.files = append(r.files, f)
	return nil
}

// nobody owns what has an owner that is not mapped (user_namespaces(7)).
const nobody = 65534

// seen is an id of the host's as a mount with mapped ids shows it.
func seen(id uint32, ranges []vmm.IDRange) uint32 {
	for _, r := range ranges {
		if id >= r.Host && id-r.Host < r.Size {
			return r.Seen + (id - r.Host)
		}
	}
	return nobody
}

func (r *projectedReader) charge(n int) error {
	if r.room -= n; r.room < 0 {
		return fmt.Errorf("it is larger than the %d MiB that a container's volumes may have together for this", maxContent>>20)
	}
	return nil
}

// content reads a regular file.
func (r *projectedReader) content(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("is not a file any more")
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(r.room)+1))
	if err != nil {
		return nil, err
	}
	return b, r.charge(len(b))
}

// readLink reads a link in a directory.
func readLink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
