package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"manis/trace"
)

func TestPhases(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(n int) time.Time { return t0.Add(time.Duration(n) * time.Millisecond) }
	one := &start{begin: t0, end: at(100), spans: []trace.Span{
		{ID: 1, Name: "run", Start: at(10), End: at(90)},
		{ID: 2, Name: "start", Start: at(20), End: at(80), Parent: 1},
		{ID: 3, Name: "boot", Start: at(30), End: at(60), Parent: 2},
		{ID: 4, Name: "boot", Start: at(60), End: at(70), Parent: 2},
		{ID: 5, Name: "create", Start: at(10), End: at(15), Parent: 1},
		{ID: 6, Name: "never ended", Start: at(80), Parent: 1},
	}}
	var p phases
	p.add("manis", one)
	p.add("manis", one)
	p.add("runc", &start{begin: t0, end: at(1)})
	var got []string
	sum := 0.0
	for _, ph := range p.medians() {
		if ph.Subject != "manis" || ph.Starts != 2 {
			t.Errorf("%+v", ph)
		}
		got = append(got, strings.Join([]string{ph.Path, number(ph.Start), number(ph.Took), number(ph.Self)}, " "))
		sum += ph.Self
	}
	want := []string{
		"(in no phase) 0 15.0 15.0", "program start 0 10.0 10.0", "create 10.0 5.00 5.00",
		"start 20.0 60.0 20.0", "start/boot 30.0 30.0 30.0", "start/boot' 60.0 10.0 10.0",
		"never ended 80.0 0 0", "output to exit 90.0 10.0 10.0",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if sum != 100 {
		t.Errorf("the phases of 100 ms add up to %v", sum)
	}
}

func TestStartOf(t *testing.T) {
	ctx := context.Background()
	st, err := startOf(ctx, &script{label: "manis", text: "echo a warning >&2; " + traced})
	if err != nil || len(st.spans) != 2 || !st.first.After(st.begin) || st.end.Before(st.first) || st.claimed() {
		t.Errorf("%+v, %v", st, err)
	}
	_, err = startOf(ctx, &script{label: "manis", text: traced + "\necho a reason >&2; exit 7"})
	if err == nil || err.Error() != "exit status 7: a reason" {
		t.Error(err)
	}
	// A machine that waited is taken by the machine's process, not only asked for.
	asked := trace.Span{Name: "claim", ID: 2, Parent: 1}
	taken := trace.Span{Name: "claim", ID: 4, Parent: 3}
	if (&start{spans: []trace.Span{asked}}).claimed() || !(&start{spans: []trace.Span{asked, taken}}).claimed() {
		t.Error("starts out of the pool are not told from others")
	}
}

// A round's ratio is formed of the round's own starts.
func TestRatios(t *testing.T) {
	r := &Report{}
	for i, v := range []float64{100, 400, 900} {
		r.add("start", toExit, "manis, template", "ms", false, v)
		r.add("start", toExit, "runc", "ms", false, []float64{10, 20, 30}[i])
	}
	r.add("start", toExit, "crun", "ms", false, 1)
	r.Phases = []Phase{{Subject: "manis, template", Path: "boot", Self: 40}, {Subject: "other", Path: "boot", Self: 1}}
	list := r.ratios()
	if len(list) != 1 || list[0].To != "runc" || list[0].Low != 15 || list[0].Median != 20 || list[0].High != 25 || list[0].Rounds != 3 || list[0].Phases["boot"] != 2 {
		t.Errorf("%+v", list)
	}
}

func TestHistory(t *testing.T) {
	dir := t.TempDir()
	write := func(date time.Time, subjects ...string) {
		r := &Report{Date: date}
		for i, s := range subjects {
			r.add("start", toExit, s, "ms", false, float64(1000-i*100))
		}
		if _, _, err := r.save(dir); err != nil {
			t.Fatal(err)
		}
	}
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	write(day(3), "manis, template", "runc")
	write(day(1), "manis", "runc")
	write(day(2), "manis", "manis, booted", "runc")
	write(day(4)) // of other sections only
	history, err := readHistory(dir)
	if err != nil || len(history) != 3 {
		t.Fatalf("%+v, %v", history, err)
	}
	if m := history[0].Medians; m["manis, booted"] != 1000 || len(m) != 2 {
		t.Errorf("before there were templates: %v", m)
	}
	if m := history[1].Medians; m["manis, template"] != 1000 || m["manis, booted"] != 900 {
		t.Errorf("with a template: %v", m)
	}
	if r := history[2].ratio("manis, template", "runc"); r != 1.111 {
		t.Errorf("ratio %v", r)
	}
	pages, _ := filepath.Glob(filepath.Join(dir, "*03-*.html"))
	if len(pages) != 1 {
		t.Fatal(pages)
	}
	text, _ := os.ReadFile(pages[0])
	if !strings.Contains(string(text), "<polyline") || !strings.Contains(string(text), "1.11× runc") {
		t.Error("the page lacks its history")
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readHistory(dir); err == nil || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("a broken file: %v", err)
	}
}

// The history that is kept can be read.
func TestKeptHistory(t *testing.T) {
	history, err := readHistory("results")
	if err != nil || len(history) < 3 {
		t.Errorf("%d runs, %v", len(history), err)
	}
}
