package storage

import (
	"fmt"
	"math/big"
	"strings"
)

// ParseSize reads a number of bytes as docker does: "1048576", "512k", "256m", "1.5g", "10GiB", with powers
// of 1024 whatever the spelling.
func ParseSize(value string) (int64, error) {
	bad := fmt.Errorf("size %q: want a number of bytes such as 512k, 256m or 1.5g", value)
	text := strings.ToLower(strings.TrimSpace(value))
	number := strings.TrimRight(text, "bikmgtp ")
	unit := strings.TrimSpace(text[len(number):])
	shift := uint(0)
	if unit != "" && unit != "b" {
		prefix, known := strings.IndexByte("kmgtp", unit[0]), unit[1:]
		if prefix < 0 || known != "" && known != "b" && known != "i" && known != "ib" {
			return 0, bad
		}
		shift = 10 * uint(prefix+1)
	}
	if number == "" || len(number) > 32 || strings.Trim(number, "0123456789.") != "" {
		return 0, bad
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, bad
	}
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift)))
	whole := new(big.Int).Quo(r.Num(), r.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf("size %q is too large", value)
	}
	return whole.Int64(), nil
}

// ParseStorageOption reads a --storage-opt value, of which "size=BYTES" is the only one there is: the size of
// the disk under the container's writable layer.
func ParseStorageOption(value string) (size int64, err error) {
	key, number, ok := strings.Cut(value, "=")
	if !ok || key != "size" {
		return 0, fmt.Errorf("storage option %q: want size=BYTES", value)
	}
	if size, err = ParseSize(number); err != nil {
		return 0, fmt.Errorf("storage option: %w", err)
	}
	if err := checkScratchSize(size); err != nil {
		return 0, fmt.Errorf("storage option: %w", err)
	}
	return size, nil
}
