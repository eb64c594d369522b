package verity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	dmverity "github.com/containerd/go-dmverity/pkg/verity"

	"manis/image/fault"
)

// verify asks another implementation.
func verify(path string, t Tree) error {
	return dmverity.Verify(&dmverity.Params{
		HashName: "sha256", HashType: 1, DataBlockSize: BlockSize, HashBlockSize: BlockSize, DataBlocks: uint64(t.DataBlocks),
		Salt: t.Salt, SaltSize: uint16(len(t.Salt)), HashAreaOffset: uint64(t.HashOffset), NoSuperblock: true,
	}, path, path, t.RootHash)
}

func write(t *testing.T, blocks int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(blocks * BlockSize); err != nil {
		t.Fatal(err)
	}
	for i := int64(0); i < blocks; i += 3 { // two of three blocks are holes
		if _, err := f.WriteAt(fmt.Appendf(nil, "block %d", i), i*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestAgainstAnother checks trees of every shape, and that a flipped bit
// anywhere in data or tree is noticed.
func TestAgainstAnother(t *testing.T) {
	for _, blocks := range []int64{1, 2, 127, 128, 129, 255, 256, 257, 16383, 16384, 16385} {
		t.Run(fmt.Sprint(blocks), func(t *testing.T) {
			f := write(t, blocks)
			tree, err := Append(t.Context(), f, blocks*BlockSize, []byte("some salt"), 3)
			if err != nil {
				t.Fatal(err)
			}
			if fi, err := f.Stat(); err != nil || fi.Size() != tree.Size || len(tree.RootHex()) != 64 {
				t.Errorf("size %v, want %d (%v)", fi, tree.Size, err)
			}
			if blocks == 1 {
				return // the other implementation wants a tree
			}
			if err := verify(f.Name(), tree); err != nil {
				t.Fatal(err)
			}
			for _, at := range []int64{0, blocks*BlockSize - 1, tree.HashOffset, tree.Size - BlockSize} {
				var b [1]byte
				f.ReadAt(b[:], at)
				f.WriteAt([]byte{b[0] ^ 1}, at)
				if verify(f.Name(), tree) == nil {
					t.Errorf("flipped bit at %d is not noticed", at)
				}
				f.WriteAt(b[:], at)
			}
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	f := write(t, 2)
	for _, size := range []int64{0, -BlockSize, 100, BlockSize + 1} {
		if _, err := Append(t.Context(), f, size, nil, 1); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if _, err := Append(t.Context(), f, 100*BlockSize, nil, 4); !errors.Is(err, fault.ErrTruncated) {
		t.Errorf("more than the file has: %v", err)
	}
}
