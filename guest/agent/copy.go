package agent

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

const (
	paxXattr = "SCHILY.xattr."
	// maxXattrs bounds the extended attributes of one file, bytes.
	maxXattrs = 64 << 10
	// holeSize is the least run of zeros that is left out of a file, bytes.
	holeSize = 64 << 10
)

// copyStream claims the stream of a copy, which ends with its request.
func (s *service) copyStream(ctx context.Context, token uint64) (net.Conn, func(), error) {
	wait, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if token == 0 {
		return nil, nil, fail(codes.InvalidArgument, errors.New("a copy needs a stream"))
	}
	stream, err := s.guest.Claim(wait, token)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { stream.SetDeadline(time.Now()) })
	return stream, func() {
		stop()
		stream.Close()
	}, nil
}

// CopyOut writes the tar of a path. The reply comes after the last byte.
func (s *service) CopyOut(ctx context.Context, r *api.CopyOutRequest) (*api.CopyOutResponse, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	var stream net.Conn
	if r.Stream != 0 {
		var release func()
		if stream, release, err = s.copyStream(ctx, r.Stream); err != nil {
			return nil, err
		}
		defer release()
	}
	var reply *api.CopyOutResponse
	mnt, err := c.mountNamespace()
	if err != nil {
		return nil, err
	}
	err = visit(mnt, func() error {
		var err error
		reply, err = copyOut(ctx, r, stream)
		return err
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// copyOut runs inside the container. Without a stream it only describes the path.
func copyOut(ctx context.Context, r *api.CopyOutRequest, stream io.Writer) (*api.CopyOutResponse, error) {
	name := path.Clean("/" + r.Path)
	flags := unix.O_PATH | unix.O_CLOEXEC
	if !r.FollowLink && !strings.HasSuffix(r.Path, "/") && !strings.HasSuffix(r.Path, "/.") {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Open(name, flags, 0)
	if err != nil {
		return nil, pathError(r.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, pathError(r.Path, err)
	}
	base := path.Base(name)
	if base == "/" {
		base = "."
	}
	reply := &api.CopyOutResponse{
		Name: base, Size: uint64(st.Size), Mode: st.Mode, MtimeUnixNs: st.Mtim.Nano(),
		IsDir: st.Mode&unix.S_IFMT == unix.S_IFDIR,
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if reply.LinkTarget, err = readLink(fd, ""); err != nil {
			return nil, pathError(r.Path, err)
		}
	}
	if stream == nil {
		return reply, nil
	}
	w := &tarOut{ctx: ctx, w: tar.NewWriter(stream), links: make(map[[2]uint64]string), buf: make([]byte, streamBuffer)}
	if err := w.object(fd, base, &st, 0); err != nil {
		return nil, fmt.Errorf("copy %s: %w", r.Path, err)
	}
	if err := w.w.Close(); err != nil {
		return nil, fmt.Errorf("copy %s: %w", r.Path, err)
	}
	return reply, nil
}

func pathError(name string, err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return fail(codes.NotFound, fmt.Errorf("could not find the file %s in the container", name))
	}
	return fmt.Errorf("open %s: %w", name, err)
}

// tarOut writes a tree as a tar. It holds each object by a descriptor, so
// that a container that exchanges names meanwhile confuses only itself.
type tarOut struct {
	ctx   context.Context
	w     *tar.Writer
	links map[[2]uint64]string
	buf   []byte
}

// object writes what fd, an O_PATH descriptor, refers to.
func (t *tarOut) object(fd int, name string, st *unix.Stat_t, depth int) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return errors.New("directories are nested too deep")
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := t.links[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return t.w.WriteHeader(h)
		}
		t.links[key] = name
	}
	switch kind {
	case unix.S_IFREG:
		return t.file(fd, h, st)
	case unix.S_IFDIR:
		return t.dir(fd, h, depth)
	case unix.S_IFLNK:
		var err error
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readLink(fd, ""); err != nil {
			return err
		}
	case unix.S_IFCHR:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		// A socket means nothing elsewhere.
		return nil
	}
	return t.w.WriteHeader(h)
}

// reopenFile turns an O_PATH descriptor into one that can be read.
func reopenFile(fd int) (int, error) {
	// Through the agent's /proc: the container's is not asked.
	return unix.Openat(procDir, "thread-self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

func (t *tarOut) file(fd int, h *tar.Header, st *unix.Stat_t) error {
	in, err := reopenFile(fd)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	t.xattrs(in, h)
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	// The header has promised a size: a file that shrinks is filled up, one
	// that grows is cut.
	for left := st.Size; left > 0; {
		n, err := unix.Read(in, t.buf[:min(int64(len(t.buf)), left)])
		if err != nil {
			return err
		}
		if n == 0 {
			n = int(min(int64(len(t.buf)), left))
			clear(t.buf[:n])
		}
		if _, err := t.w.Write(t.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

func (t *tarOut) dir(fd int, h *tar.Header, depth int) error {
	in, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	name := h.Name
	h.Typeflag, h.Name = tar.TypeDir, name+"/"
	t.xattrs(in, h)
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	names, err := dirNames(in)
	if err != nil {
		return err
	}
	for _, n := range names {
		child, err := unix.Openat(in, n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue // gone meanwhile
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		var st unix.Stat_t
		if err = unix.Fstat(child, &st); err == nil {
			err = t.object(child, name+"/"+n, &st, depth+1)
		}
		unix.Close(child)
		if err != nil {
			return err
		}
	}
	return nil
}

// xattrs adds a file's extended attributes, but not those that belong to the
// overlay.
func (t *tarOut) xattrs(fd int, h *tar.Header) {
	list := make([]byte, maxXattrs)
	n, err := unix.Flistxattr(fd, list)
	if err != nil || n == 0 {
		return
	}
	value := make([]byte, maxXattrs)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.Contains(name, "=") {
			continue
		}
		if m, err := unix.Fgetxattr(fd, name, value); err == nil && m > 0 {
			if h.PAXRecords == nil {
				h.PAXRecords = make(map[string]string)
			}
			h.PAXRecords[paxXattr+name] = string(value[:m])
		}
	}
}

// CopyIn unpacks a tar below a directory of the container.
func (s *service) CopyIn(ctx context.Context, r *api.CopyInRequest) (*api.Empty, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	stream, release, err := s.copyStream(ctx, r.Stream)
	if err != nil {
		return nil, err
	}
	defer release()
	mnt, err := c.mountNamespace()
	if err != nil {
		return nil, err
	}
	if err := visit(mnt, func() error {
		if r.MustLast {
			if err := c.lasts(r.Path); err != nil {
				return err
			}
		}
		return copyInto(ctx, r, stream)
	}); err != nil {
		return nil, err
	}
	// What follows the archive's end is of no use, but the host must be able to
	// send it.
	io.Copy(io.Discard, stream)
	return &api.Empty{}, nil
}

// lasts fails for a directory of which nothing is left when the machine has ended. It runs
// inside the container.
func (c *container) lasts(name string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path.Clean("/"+name), &fs); err != nil {
		return pathError(name, err)
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.V9FS_MAGIC:
		return nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		switch root := c.request.Rootfs; {
		case root.GetReadonly():
			return fail(codes.FailedPrecondition, errors.New("the container's root filesystem is marked read-only"))
		case root.GetScratchDisk() != "":
			return nil
		}
		return fail(codes.FailedPrecondition, fmt.Errorf("%s is in the container's writable layer, which is in memory: what is copied there would be lost, as the container is not running", name))
	}
	return fail(codes.FailedPrecondition, fmt.Errorf("%s is in memory: what is copied there would be lost, as the container is not running", name))
}

// copyInto runs inside the container.
func copyInto(ctx context.Context, r *api.CopyInRequest, stream io.Reader) error {
	dest := path.Clean("/" + r.Path)
	var st unix.Stat_t
	if err := unix.Stat(dest, &st); err != nil {
		return pathError(r.Path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fail(codes.InvalidArgument, fmt.Errorf("%s is not a directory", r.Path))
	}
	t := &tarIn{dest: dest, request: r, buf: make([]byte, holeSize)}
	in := tar.NewReader(stream)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fail(codes.InvalidArgument, fmt.Errorf("read archive: %w", err))
		}
		if err := t.entry(h, in); err != nil {
			return fmt.Errorf("copy to %s: %w", path.Join(r.Path, h.Name), err)
		}
	}
	return t.finish()
}

// tarIn unpacks a tar below dest.
type tarIn struct {
	dest    string
	request *api.CopyInRequest
	buf     []byte
	// dirs get their times last: what is put into them would change these.
	dirs []dirTime
}

type dirTime struct {
	name  string
	mtime unix.Timespec
}

// maxDirTimes bounds what is remembered of an archive.
const maxDirTimes = 1 << 16

func (t *tarIn) finish() error {
	for i := len(t.dirs) - 1; i >= 0; i-- {
		d := t.dirs[i]
		unix.UtimesNanoAt(unix.AT_FDCWD, d.name, []unix.Timespec{d.mtime, d.mtime}, unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// local makes a name of the archive one below dest.
func (t *tarIn) local(name string) (string, error) {
	clean := path.Clean("/" + name)
	if len(clean) > unix.PathMax {
		return "", unix.ENAMETOOLONG
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fail(codes.InvalidArgument, errors.New("the name leads out of the directory"))
		}
	}
	return path.Join(t.dest, clean), nil
}

func (t *tarIn) entry(h *tar.Header, content io.Reader) error {
	name, err := t.local(h.Name)
	if err != nil {
		return err
	}
	if name != t.dest {
		if err := makeDirs(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := t.clearWay(name, h.Typeflag == tar.TypeDir); err != nil {
			return err
		}
	}
	mode := uint32(h.Mode) & 0o7777
	switch h.Typeflag {
	case tar.TypeDir:
		if name == t.dest {
			return nil
		}
		if err := unix.Mkdir(name, 0o700); err != nil && err != unix.EEXIST {
			return err
		}
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if len(t.dirs) < maxDirTimes {
			t.dirs = append(t.dirs, dirTime{name, unix.NsecToTimespec(h.ModTime.UnixNano())})
		}
		return t.attributes(fd, h, mode)
	case tar.TypeReg:
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := t.content(fd, h.Size, content); err != nil {
			return err
		}
		return t.attributes(fd, h, mode)
	case tar.TypeLink:
		target, err := t.local(h.Linkname)
		if err != nil {
			return err
		}
		return unix.Link(target, name)
	case tar.TypeSymlink:
		if err := unix.Symlink(h.Linkname, name); err != nil {
			return err
		}
	case tar.TypeFifo:
		if err := unix.Mkfifo(name, mode); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		if err := unix.Mknod(name, kind|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return err
		}
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return fail(codes.InvalidArgument, fmt.Errorf("entries of type %q are not known", h.Typeflag))
	}
	uid, gid := t.owner(h)
	if err := unix.Lchown(name, uid, gid); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// clearWay removes what an entry replaces.
func (t *tarIn) clearWay(name string, isDir bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	exists := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case exists && isDir:
		return nil
	case exists != isDir && t.request.NoOverwriteDirNonDir:
		if exists {
			return fail(codes.FailedPrecondition, errors.New("cannot overwrite a directory with something else"))
		}
		return fail(codes.FailedPrecondition, errors.New("cannot overwrite a file with a directory"))
	case exists:
		return os.RemoveAll(name)
	}
	return unix.Unlink(name)
}

func (t *tarIn) owner(h *tar.Header) (int, int) {
	if t.request.KeepOwnership {
		return h.Uid, h.Gid
	}
	return 0, 0
}

// content writes a file; long runs of zeros become holes.
func (t *tarIn) content(fd int, size int64, from io.Reader) error {
	var off int64
	for off < size {
		n, err := io.ReadFull(from, t.buf[:min(int64(len(t.buf)), size-off)])
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if n < holeSize || !isZero(t.buf[:n]) {
			for done := 0; done < n; {
				m, err := unix.Pwrite(fd, t.buf[done:n], off+int64(done))
				if err != nil {
					return err
				}
				done += m
			}
		}
		off += int64(n)
	}
	return unix.Ftruncate(fd, size)
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// attributes sets owner, extended attributes, mode and times, in this order:
// a change of the owner drops file capabilities and setuid bits.
func (t *tarIn) attributes(fd int, h *tar.Header, mode uint32) error {
	uid, gid := t.owner(h)
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, paxXattr); ok && !strings.HasPrefix(name, "trusted.") {
			if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && err != unix.ENOTSUP && err != unix.EPERM {
				return fmt.Errorf("extended attribute %s: %w", name, err)
			}
		}
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
}
