package crilog

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"manis/cli/journal"
)

const text = `2026-01-02T03:04:05.000000001Z stdout F one
2026-01-02T03:04:06.5Z stderr P two, the
2026-01-02T03:04:06.5Z stderr F  rest
nonsense
2026-01-02T03:04:06.5Z other F x
2026-01-02T03:04:06.5Z stdout X x
2026-01-02T03:04:07+00:00 stdout F:tag 
2026-01-02T03:04:08Z stdout F three
2026-01-02T03:04:09Z stdout F being writ`

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	long := "2026-01-02T03:04:05Z stdout F " + strings.Repeat("x", 2*maxLine) + "\n"
	if err := os.WriteFile(path, []byte(long+text), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(s string) time.Time {
		when, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	for _, c := range []struct {
		name string
		q    journal.Query
		want string
	}{
		{"all", journal.Query{Tail: -1}, "stdout:one\nstderr:two, thestderr: rest\nstdout:\nstdout:three\n"},
		{"the end", journal.Query{Tail: 3}, "stderr:two, thestderr: rest\nstdout:\nstdout:three\n"},
		{"one line", journal.Query{Tail: 1}, "stdout:three\n"},
		{"none", journal.Query{Tail: 0}, ""},
		{"more than there are", journal.Query{Tail: 9}, "stdout:one\nstderr:two, thestderr: rest\nstdout:\nstdout:three\n"},
		{"between times", journal.Query{Tail: -1, Since: at("2026-01-02T03:04:06Z"), Until: at("2026-01-02T03:04:07Z")}, "stderr:two, thestderr: rest\nstdout:\n"},
	} {
		var got strings.Builder
		err := Read(t.Context(), path, c.q, func(r *journal.Record) error {
			got.WriteString(r.Stream + ":" + r.Log)
			return nil
		})
		if err != nil || got.String() != c.want {
			t.Errorf("%s: %q, %v", c.name, got.String(), err)
		}
	}
	if err := Read(t.Context(), t.TempDir(), journal.Query{Tail: -1}, nil); err == nil {
		t.Error("a directory was read")
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"web_shop_app-abc.log", "web_shop_app-abcd.log", "abc.log"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if path, err := Find(dir, "abc"); err != nil || filepath.Base(path) != "web_shop_app-abc.log" {
		t.Errorf("%s, %v", path, err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "none")} {
		if _, err := Find(d, "ab"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what is not there: %v", err)
		}
	}
	if _, err := Find(dir, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no id: %v", err)
	}
}

// FuzzParse: what engines write comes from containers.
func FuzzParse(f *testing.F) {
	for line := range strings.Lines(text) {
		f.Add(strings.TrimSuffix(line, "\n"))
	}
	f.Fuzz(func(t *testing.T, line string) {
		r, ok := parse(line)
		if ok && (r.Stream != "stdout" && r.Stream != "stderr" || len(r.Log) > len(line)+1 || r.Time.IsZero() && !strings.HasPrefix(line, "0001")) {
			t.Errorf("%q became %+v", line, r)
		}
	})
}
