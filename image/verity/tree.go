// Package verity writes dm-verity hash trees (format version 1, SHA-256, 4 KiB
// blocks, no superblock) behind the data they protect. The parameters that the
// kernel's device-mapper table needs come back as a Tree. The package must not
// know what the data is.
package verity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"manis/image/fault"
)

const (
	// BlockSize of data and of the tree, in bytes.
	BlockSize = 4096
	perBlock  = BlockSize / sha256.Size

	// group is how many data blocks a worker hashes at a time: they fill
	// whole blocks of the lowest level.
	group = 2 * perBlock
)

// Tree describes a hash tree and the data below it.
type Tree struct {
	DataBlocks int64  // data size in blocks
	HashOffset int64  // where the tree starts in the file, in bytes
	Size       int64  // end of the tree, in bytes
	Salt       []byte // hashed before every block
	RootHash   []byte
}

// RootHex is the root hash as veritysetup and the kernel's table print it.
func (t Tree) RootHex() string { return hex.EncodeToString(t.RootHash) }

// levels returns the block counts of the tree's levels, lowest first, and the
// offset of each. The highest level lies first on disk.
func levels(dataBlocks, hashOffset int64) (counts, offsets []int64) {
	for n := dataBlocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		counts = append(counts, n)
	}
	offsets = make([]int64, len(counts))
	at := hashOffset
	for i := len(counts) - 1; i >= 0; i-- {
		offsets[i] = at
		at += counts[i] * BlockSize
	}
	return counts, offsets
}

// Append hashes the first dataSize bytes of file, a multiple of BlockSize, and
// writes the tree right behind them, with jobs workers. Equal data and salt
// give an equal tree.
func Append(ctx context.Context, file *os.File, dataSize int64, salt []byte, jobs int) (Tree, error) {
	if dataSize <= 0 || dataSize%BlockSize != 0 {
		return Tree{}, fmt.Errorf("hash tree over %d bytes: not a positive multiple of %d: %w", dataSize, BlockSize, fault.ErrInvalid)
	}
	t := Tree{DataBlocks: dataSize / BlockSize, HashOffset: dataSize, Salt: bytes.Clone(salt)}
	counts, offsets := levels(t.DataBlocks, t.HashOffset)
	t.Size = t.HashOffset
	for _, n := range counts {
		t.Size += n * BlockSize
	}
	from, blocks := int64(0), t.DataBlocks
	for i := range counts {
		if err := hashLevel(ctx, file, from, blocks, offsets[i], t.Salt, jobs); err != nil {
			return Tree{}, err
		}
		from, blocks = offsets[i], counts[i]
	}
	top := make([]byte, BlockSize)
	if _, err := file.ReadAt(top, from); err != nil {
		return Tree{}, fmt.Errorf("read the top of the hash tree: %w", err)
	}
	t.RootHash = newHasher(t.Salt).sum(nil, top)
	return t, nil
}

// hashLevel writes the digests of the blocks at from to to.
func hashLevel(ctx context.Context, file *os.File, from, blocks, to int64, salt []byte, jobs int) error {
	groups := (blocks + group - 1) / group
	var next atomic.Int64
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make([]error, max(1, min(jobs, int(min(groups, 64)))))
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			h := newHasher(salt)
			in := make([]byte, group*BlockSize)
			out := make([]byte, 0, group*sha256.Size)
			for {
				g := next.Add(1) - 1
				if g >= groups {
					return
				}
				if ctx.Err() != nil {
					errs[i] = context.Cause(ctx) // another worker's error, or the caller's wish
					return
				}
				n := min(group, blocks-g*group)
				if errs[i] = hashGroup(file, h, in[:n*BlockSize], out, from+g*group*BlockSize, to+g*group*sha256.Size); errs[i] != nil {
					cancel(errs[i])
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func hashGroup(file *os.File, h *hasher, in, out []byte, from, to int64) error {
	if _, err := file.ReadAt(in, from); err != nil {
		if errors.Is(err, io.EOF) {
			err = fault.ErrTruncated
		}
		return fmt.Errorf("read data for the hash tree: %w", err)
	}
	for b := in; len(b) > 0; b = b[BlockSize:] {
		out = h.sum(out, b[:BlockSize])
	}
	// The last block of a level is padded with zeros.
	full := (len(out) + BlockSize - 1) / BlockSize * BlockSize
	clear(out[len(out):full])
	if _, err := file.WriteAt(out[:full], to); err != nil {
		return fmt.Errorf("write the hash tree: %w", err)
	}
	return nil
}

// hasher digests blocks. Holes are common, so zeros are digested only once.
type hasher struct {
	salt []byte
	h    hash.Hash
	zero []byte
}

var zeroBlock [BlockSize]byte

func newHasher(salt []byte) *hasher {
	h := &hasher{salt: salt, h: sha256.New()}
	h.zero = h.digest(nil, zeroBlock[:])
	return h
}

func (h *hasher) sum(to, block []byte) []byte {
	if block[0] == 0 && bytes.Equal(block, zeroBlock[:]) {
		return append(to, h.zero...)
	}
	return h.digest(to, block)
}

func (h *hasher) digest(to, block []byte) []byte {
	h.h.Reset()
	h.h.Write(h.salt)
	h.h.Write(block)
	return h.h.Sum(to)
}
