package agent

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// verityTable is the target's parameter line,
// Documentation/admin-guide/device-mapper/verity.rst, and the length of the device in
// sectors.
func verityTable(dev string, v *api.Verity) (string, uint64, error) {
	if v.Algorithm != "" && v.Algorithm != "sha256" {
		return "", 0, fmt.Errorf("hash algorithm %q is not offered, only sha256", v.Algorithm)
	}
	if b, err := hex.DecodeString(v.RootHash); err != nil || len(b) != 32 {
		return "", 0, errors.New("the root hash is not 64 hex digits")
	}
	salt := v.Salt
	if salt == "" {
		salt = "-"
	} else if _, err := hex.DecodeString(salt); err != nil || len(salt) > 512 {
		return "", 0, errors.New("the salt is not hex")
	}
	for _, size := range []uint32{v.DataBlockBytes, v.HashBlockBytes} {
		if size < 512 || size > 4096 || size&(size-1) != 0 {
			return "", 0, fmt.Errorf("a block size of %d bytes is not offered", size)
		}
	}
	if v.HashOffset%uint64(v.HashBlockBytes) != 0 {
		return "", 0, fmt.Errorf("the hash tree's offset %d is not a multiple of the block size", v.HashOffset)
	}
	if v.DataBlocks == 0 || v.DataBlocks > 1<<50 {
		return "", 0, fmt.Errorf("%d data blocks", v.DataBlocks)
	}
	u := func(n uint64) string { return strconv.FormatUint(n, 10) }
	line := strings.Join([]string{
		"1", dev, dev, u(uint64(v.DataBlockBytes)), u(uint64(v.HashBlockBytes)), u(v.DataBlocks),
		u(v.HashOffset / uint64(v.HashBlockBytes)), verityHash(), v.RootHash, salt,
	}, " ")
	return line, v.DataBlocks * uint64(v.DataBlockBytes/512), nil
}

// openVerity makes a checked device out of dev.
func openVerity(dev string, v *api.Verity) (*mapped, error) {
	table, sectors, err := verityTable(dev, v)
	if err != nil {
		return nil, fail(codes.InvalidArgument, err)
	}
	d, err := openMapped("verity", table, sectors)
	if err != nil {
		return nil, fmt.Errorf("%w (is the disk smaller than its description?)", err)
	}
	d.readAhead(verityReadAhead)
	return d, nil
}

// verityReadAhead is how much is read, and checked, beyond what is asked for, bytes. The kernel's
// 128 KiB are too much where checking is emulated: a start reads little pieces of
// many files.
const verityReadAhead = 16 << 10
