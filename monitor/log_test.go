package monitor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogRotatesInTheMiddleOfAWrite(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, 10_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	s := l.stream("stdout")
	if _, err := s.Write([]byte(strings.Repeat("a line of some length\n", 3000))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v; want 3", files, err)
	}
	for _, f := range files {
		fi, err := f.Info()
		if err != nil || fi.Size() > 10_000 || fi.Size() == 0 {
			t.Errorf("%s has %d bytes, %v", f.Name(), fi.Size(), err)
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			var entry struct{ Log, Stream, Time string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Log != "a line of some length\n" || entry.Stream != "stdout" {
				t.Fatalf("%s: line %q, %v", f.Name(), line, err)
			}
		}
	}
}

func TestLogKeepsEveryByte(t *testing.T) {
	for name, in := range map[string]string{
		"control":    "\x00\x01\x1b[0m\x7f\n",
		"quotes":     `"\/<>&` + "\n",
		"utf-8":      "häß €\n",
		"no end":     "partial",
		"tab, lines": "\t\n\n",
		"very long":  strings.Repeat("x", 3*maxLogLine+5) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := openLog(dir, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			s := l.stream("stderr")
			s.Write([]byte(in))
			s.Close()
			l.Close()
			b, err := os.ReadFile(filepath.Join(dir, "container.log"))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
				var entry struct{ Log string }
				if err := json.Unmarshal([]byte(line), &entry); err != nil {
					t.Fatalf("line %q: %v", line, err)
				}
				out.WriteString(entry.Log)
			}
			if out.String() != in {
				t.Errorf("logged %q, want %q", out.String(), in)
			}
		})
	}
}
