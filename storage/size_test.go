package storage

import "testing"

func TestParseSize(t *testing.T) {
	for value, want := range map[string]int64{
		"0": 0, "512": 512, "512b": 512, "1k": 1 << 10, "1K": 1 << 10, "256m": 256 << 20, "256MB": 256 << 20,
		"256MiB": 256 << 20, "256Mi": 256 << 20, "1.5g": 3 << 29, "1 g": 1 << 30, " 2t ": 2 << 40, "1p": 1 << 50, ".5k": 512,
		"8388607t": 8388607 << 40,
	} {
		if got, err := ParseSize(value); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", value, got, err, want)
		}
	}
	for _, value := range []string{
		"", "k", "b", "-1", "-1m", "+1", "1x", "10i", "10ib", "1kk", "1bk", "1e9", "0x10", "1/2", "1..2", ".", "1_000",
		"8388608t", "99999999999999999999", "1m 2", "NaN", "inf", "١",
	} {
		if got, err := ParseSize(value); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", value, got)
		}
	}
}

func TestParseStorageOption(t *testing.T) {
	if got, err := ParseStorageOption("size=1g"); err != nil || got != 1<<30 {
		t.Errorf("size=1g: %d, %v", got, err)
	}
	for _, value := range []string{"", "size", "size=", "size=1k", "size=1p", "inodes=1", "1g"} {
		if _, err := ParseStorageOption(value); err == nil {
			t.Errorf("%q: no error", value)
		}
	}
}
