package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writer writes a journal as a monitor does.
type writer struct {
	t   *testing.T
	dir string
	n   int
}

var start = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func (w *writer) write(count int) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, Name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	b := bufio.NewWriter(f)
	for range count {
		line, _ := json.Marshal(Record{Log: fmt.Sprintf("line %d\n", w.n), Stream: "stdout", Time: start.Add(time.Duration(w.n) * time.Second)})
		b.Write(append(line, '\n'))
		w.n++
	}
	if err := b.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) raw(s string) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, Name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	f.WriteString(s)
}

// rotate keeps `keep` files besides the one being written.
func (w *writer) rotate(keep int) {
	w.t.Helper()
	for i := keep; i >= 1; i-- {
		from := filepath.Join(w.dir, fmt.Sprintf("%s.%d", Name, i-1))
		if i == 1 {
			from = filepath.Join(w.dir, Name)
		}
		if err := os.Rename(from, filepath.Join(w.dir, fmt.Sprintf("%s.%d", Name, i))); err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
}

func collect(t *testing.T, dir string, q Query) []int {
	t.Helper()
	var got []int
	err := Read(context.Background(), dir, q, func(r *Record) error {
		var n int
		if _, err := fmt.Sscanf(r.Log, "line %d\n", &n); err != nil {
			t.Errorf("record %+v", r)
		}
		got = append(got, n)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func wantRange(t *testing.T, got []int, from, to int) {
	t.Helper()
	if len(got) != to-from {
		t.Fatalf("got %d records, want %d", len(got), to-from)
	}
	for i, n := range got {
		if n != from+i {
			t.Fatalf("record %d is %d, want %d", i, n, from+i)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	w := &writer{t: t, dir: dir}
	w.write(10)
	w.rotate(5)
	w.write(2000) // more than one block of the search for the tail
	w.rotate(5)
	w.write(5)
	at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	tests := []struct {
		name     string
		q        Query
		from, to int
	}{
		{"all", Query{Tail: -1}, 0, 2015},
		{"tail in the newest", Query{Tail: 3}, 2012, 2015},
		{"tail of the newest", Query{Tail: 5}, 2010, 2015},
		{"tail over two", Query{Tail: 6}, 2009, 2015},
		{"tail over blocks", Query{Tail: 1500}, 515, 2015},
		{"tail over three", Query{Tail: 2010}, 5, 2015},
		{"tail of all", Query{Tail: 2015}, 0, 2015},
		{"tail beyond", Query{Tail: 9999}, 0, 2015},
		{"no tail", Query{Tail: 0}, 2015, 2015},
		{"since", Query{Tail: -1, Since: at(2000)}, 2000, 2015},
		{"until", Query{Tail: -1, Until: at(20)}, 0, 21},
		{"between", Query{Tail: -1, Since: at(5), Until: at(20)}, 5, 21},
		{"tail and since", Query{Tail: 10, Since: at(2012)}, 2012, 2015},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantRange(t, collect(t, dir, tt.q), tt.from, tt.to) })
	}
}

func TestReadNothing(t *testing.T) {
	wantRange(t, collect(t, filepath.Join(t.TempDir(), "absent"), Query{Tail: -1}), 0, 0)
	wantRange(t, collect(t, t.TempDir(), Query{Tail: 10}), 0, 0)
}

func TestReadSkipsDamage(t *testing.T) {
	w := &writer{t: t, dir: t.TempDir()}
	w.write(1)
	w.raw("\x00\x00\x00\n{\"log\":\n" + strings.Repeat("x", maxLine+10) + "\n")
	w.write(1)
	w.raw(`{"log":"half`)
	wantRange(t, collect(t, w.dir, Query{Tail: -1}), 0, 2)
}

func TestReadStopsWhenEmitFails(t *testing.T) {
	w := &writer{t: t, dir: t.TempDir()}
	w.write(3)
	full := errors.New("full")
	if err := Read(context.Background(), w.dir, Query{Tail: -1}, func(*Record) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

// TestFollow writes in steps, each after what was written before has been read,
// with rotations between, and ends the writer.
func TestFollow(t *testing.T) {
	steps := []struct {
		name string
		step func(w *writer)
	}{
		{"grow", func(w *writer) { w.write(3) }},
		{"rotate, then write", func(w *writer) { w.rotate(3); w.write(2) }},
		{"write, rotate, write", func(w *writer) { w.write(2); w.rotate(3); w.write(1) }},
		{"two rotations", func(w *writer) { w.write(1); w.rotate(3); w.write(4); w.rotate(3); w.write(1) }},
		{"half a line, then its rest", func(w *writer) {
			line, _ := json.Marshal(Record{Log: fmt.Sprintf("line %d\n", w.n), Time: start})
			w.raw(string(line[:10]))
			w.raw(string(line[10:]) + "\n")
			w.n++
		}},
	}
	dir := t.TempDir()
	w := &writer{t: t, dir: dir}
	ended := make(chan struct{})
	records := make(chan int)
	done := make(chan error, 1)
	go func() {
		done <- Read(context.Background(), dir, Query{Tail: -1, Ended: ended}, func(r *Record) error {
			var n int
			_, err := fmt.Sscanf(r.Log, "line %d\n", &n)
			records <- n
			return err
		})
		close(records)
	}()
	read := 0
	for _, s := range steps {
		s.step(w)
		for ; read < w.n; read++ {
			if n := <-records; n != read {
				t.Fatalf("%s: got record %d, want %d", s.name, n, read)
			}
		}
	}
	// What is written just before the end is still read.
	w.write(2)
	w.rotate(3)
	w.write(2)
	close(ended)
	for n := range records {
		if n != read {
			t.Fatalf("at the end: got record %d, want %d", n, read)
		}
		read++
	}
	if err := <-done; err != nil || read != w.n {
		t.Errorf("read %d of %d: %v", read, w.n, err)
	}
}

func TestFollowEnds(t *testing.T) {
	w := &writer{t: t, dir: t.TempDir()}
	w.write(1)
	never := make(chan struct{})
	t.Run("with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		err := Read(ctx, w.dir, Query{Tail: -1, Ended: never}, func(*Record) error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("at the time given", func(t *testing.T) {
		wantRange(t, collect(t, w.dir, Query{Tail: -1, Until: time.Now().Add(50 * time.Millisecond), Ended: never}), 0, 1)
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2024-01-01T00:00:00Z"}`+"\n"), 1)
	f.Add([]byte("\n\n\n"), 2)
	f.Fuzz(func(t *testing.T, content []byte, tail int) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, Name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		lines := strings.Count(string(content), "\n")
		seen := 0
		if err := Read(context.Background(), dir, Query{Tail: tail}, func(*Record) error { seen++; return nil }); err != nil {
			t.Fatal(err)
		}
		if seen > lines || tail >= 0 && seen > tail {
			t.Errorf("%d records of %d lines, tail %d", seen, lines, tail)
		}
	})
}
