// Package rootfs turns the layers of an image into one read-only EROFS with
// its dm-verity hash tree, in a single pass over each layer, without root or
// mounts, in memory that does not grow with the image. The same layers give
// the same bytes. It must not know of names, registries or the store.
package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/erofs"
	"manis/image/fault"
	"manis/image/layer"
	"manis/image/verity"
)

// Format is the version of what Build writes: of the bytes for given layers.
const Format = 2

// Image is a finished root file system: one file with the EROFS from byte 0
// and its hash tree behind.
type Image struct {
	Path       string   `json:"-"`          // absolute path of the file
	File       *os.File `json:"-"`          // open for reading, when the store gave this out
	Format     int      `json:"format"`     // Format at the time of the build
	BlockSize  int      `json:"blockSize"`  // bytes, of data and hash blocks
	DataSize   int64    `json:"dataSize"`   // bytes of EROFS
	DataBlocks int64    `json:"dataBlocks"` // DataSize / BlockSize
	HashOffset int64    `json:"hashOffset"` // bytes from the start of the file
	Size       int64    `json:"size"`       // bytes of the file; holes included
	RootHash   string   `json:"rootHash"`   // hex
	Salt       string   `json:"salt"`       // hex
	Algorithm  string   `json:"algorithm"`  // of the hashes: sha256
	Inodes     uint64   `json:"inodes"`
}

// Layer is one layer to merge.
type Layer struct {
	// Open returns the layer as it is stored, compressed or not.
	Open func() (io.ReadCloser, error)
	// Size in bytes as stored, for the expansion ratio and progress.
	Size int64
	// DiffID is the digest of the uncompressed archive, which is verified.
	DiffID v1.Hash
}

// Options of Build.
type Options struct {
	Limits  Limits
	TempDir string // for spilled metadata; must be on a disk
	Jobs    int    // hash workers; 0 means one per processor
	// Progress is told how many bytes of stored layers were read, if set.
	Progress func(done, total int64)
}

// Key names the result of Build for these layers: equal keys, equal bytes.
func Key(diffIDs []v1.Hash) string {
	h := sha256.New()
	fmt.Fprintf(h, "manis rootfs %d\n", Format)
	for _, d := range diffIDs {
		fmt.Fprintln(h, d)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Build merges layers, lowest first, into file, which must be empty and open
// for reading and writing. After an error the content of file is undefined.
// Neither sync nor close is done; Path of the result is file's name.
func Build(ctx context.Context, file *os.File, layers []Layer, opts Options) (*Image, error) {
	limits := opts.Limits.WithDefaults()
	if len(layers) > min(limits.Layers, 65534) {
		return nil, over(fmt.Sprintf("image of %d layers", len(layers)), int64(min(limits.Layers, 65534)))
	}
	diffIDs := make([]v1.Hash, len(layers))
	var total int64
	for i, l := range layers {
		diffIDs[i] = l.DiffID
		total += l.Size
	}
	seed := sha256.Sum256([]byte(Key(diffIDs)))
	var uuid [16]byte
	copy(uuid[:], seed[:])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x80, uuid[8]&0x3f|0x80 // version 8: made from the content

	b, err := erofs.NewBuilder(file, erofs.Options{TempDir: opts.TempDir, UUID: uuid})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	t := newTree(b, limits)
	m := merge{tree: t, file: file, limits: limits, buf: make([]byte, 256<<10)}
	if opts.Progress != nil {
		m.progress = func(n int64) { m.done += n; opts.Progress(m.done, total) }
	}
	for i, l := range layers {
		t.tag = uint16(i + 1)
		if err := m.layer(ctx, l); err != nil {
			return nil, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(layers), l.DiffID, err)
		}
	}
	sum, err := b.Finish(ctx)
	if err != nil {
		return nil, fmt.Errorf("write the file system: %w", err)
	}
	jobs := opts.Jobs
	if jobs <= 0 {
		jobs = runtime.GOMAXPROCS(0)
	}
	salt := sha256.Sum256(append([]byte("salt "), seed[:]...))
	v, err := verity.Append(ctx, file, sum.Size, salt[:], jobs)
	if err != nil {
		return nil, err
	}
	return &Image{
		Path: file.Name(), Format: Format, BlockSize: erofs.BlockSize,
		DataSize: sum.Size, DataBlocks: v.DataBlocks, HashOffset: v.HashOffset, Size: v.Size,
		RootHash: v.RootHex(), Salt: hex.EncodeToString(v.Salt), Algorithm: "sha256", Inodes: sum.Inodes,
	}, nil
}

type merge struct {
	tree     *tree
	file     *os.File
	limits   Limits
	buf      []byte
	progress func(n int64)
	done     int64
}

func (m *merge) layer(ctx context.Context, l Layer) error {
	src, err := l.Open()
	if err != nil {
		return err
	}
	defer src.Close()
	counted := &source{ctx: ctx, r: src, progress: m.progress}
	raw, err := layer.Decompress(counted)
	if err != nil {
		return err
	}
	defer raw.Close()
	sum := sha256.New()
	in := &expansion{r: io.TeeReader(raw, sum), limit: m.limits.LayerBytes}

	a := &applier{tree: m.tree, in: layer.NewReader(in), xattrBytes: m.limits.XattrBytes, room: m.room(l.Size)}
	if err := a.run(); err != nil {
		return err
	}
	// What follows the archive's end is still part of what the digest covers.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, in, m.buf); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != l.DiffID.Hex {
		return fmt.Errorf("uncompressed content has digest sha256:%s: %w", got, fault.ErrDigest)
	}
	return nil
}

// checkEvery so many bytes of file data, limits and the free disk are looked at.
const checkEvery = 16 << 20

// room returns what is asked as file data of a layer is stored. The layer's stored size is 0 where nothing
// is expanded.
func (m *merge) room(compressed int64) func() error {
	start := m.tree.Written()
	next := start
	return func() error {
		now := m.tree.Written()
		if now < next {
			return nil
		}
		next = now + checkEvery
		return m.checkRoom(now, now-start, compressed)
	}
}

// checkRoom is asked now and then while file data is stored.
func (m *merge) checkRoom(image, fromLayer, compressed int64) error {
	if image > m.limits.ImageBytes {
		return over("more file data than an image may have", m.limits.ImageBytes)
	}
	if fromLayer > ratioFloor && compressed > 0 && fromLayer/compressed > m.limits.Ratio {
		return over(fmt.Sprintf("layer of %d bytes expands more than %d times", compressed, m.limits.Ratio), m.limits.Ratio)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(m.file.Fd()), &fs); err == nil && int64(fs.Bavail)*fs.Bsize < m.limits.FreeReserve {
		return fmt.Errorf("less than %d MiB would stay free: %w", m.limits.FreeReserve>>20, fault.ErrNoSpace)
	}
	return nil
}

// source is a stored layer: it notices cancellation and tells of progress.
type source struct {
	ctx      context.Context
	r        io.Reader
	progress func(n int64)
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if n > 0 && s.progress != nil {
		s.progress(int64(n))
	}
	return n, err
}

// expansion ends a layer that grows past its limit.
type expansion struct {
	r     io.Reader
	n     int64
	limit int64
}

func (e *expansion) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if e.n += int64(n); e.n > e.limit {
		return 0, over("uncompressed layer is larger than a layer may be", e.limit)
	}
	return n, err
}
