package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The examples of the documentation are policies.
func TestExamplesOfTheDocumentation(t *testing.T) {
	text, err := os.ReadFile("../docs/POLICY.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, public := newKey(t)
	write(t, dir, "shop-release.pub", public)
	parts := strings.Split(string(text), "```yaml\n")[1:]
	if len(parts) != 2 {
		t.Errorf("there are %d examples", len(parts))
	}
	for _, part := range parts {
		example, _, _ := strings.Cut(part, "```")
		if _, err := Parse(filepath.Join(dir, "policy.yaml"), []byte(example)); err != nil {
			t.Errorf("%v\n%s", err, example)
		}
	}
}
