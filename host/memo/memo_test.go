package memo

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMemo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	var got struct{ A string }
	if Recall(dir, "x", &got) {
		t.Error("remembers what it was never told")
	}
	Keep(dir, "x", map[string]string{"a": "b"})
	if !Recall(dir, "x", &got) || got.A != "b" {
		t.Errorf("remembers %+v", got)
	}
	for name, content := range map[string]string{"damaged": "{", "too large": `{"a":"` + strings.Repeat("x", maxSize) + `"}`} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(Path(dir, "x"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if Recall(dir, "x", &got) {
				t.Error("takes it for true")
			}
		})
	}
	Forget(dir, "x")
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	// Without a directory, and where none can be made, nothing happens.
	for _, dir := range []string{"", "/proc/nonexistent"} {
		Keep(dir, "x", 1)
		Forget(dir, "x")
		if Recall(dir, "x", new(int)) {
			t.Errorf("%q remembers", dir)
		}
	}
}
