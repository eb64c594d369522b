package trace

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func example() []Span {
	at := func(ms int) time.Time { return time.Unix(1700000000, 0).Add(time.Duration(ms) * time.Millisecond) }
	return []Span{
		{ID: 1, Name: "run", Start: at(0), End: at(1000)},
		{ID: 2, Name: "resolve", Start: at(0), End: at(50), Parent: 1},
		{ID: 3, Name: "launch", Start: at(800), End: at(1000), Parent: 1, Attributes: map[string]string{"pid": "7", "a": "b"}},
		{ID: 4, Name: "boot", Start: at(50), End: at(800), Parent: 1},
		{ID: 5, Name: "agent", Start: at(600), End: at(799), Parent: 4},
		{ID: 6, Name: "never ended", Start: at(900), Parent: 1},
	}
}

func TestWaterfallPlain(t *testing.T) {
	var out strings.Builder
	if err := Waterfall(&out, example(), Style{Columns: 66}); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"run            ########################################  1000.0 ms\n" +
		"  resolve      ##                                          50.0 ms\n" +
		"  boot           ##############################           750.0 ms\n" +
		"    agent                              ########           199.0 ms\n" +
		"  launch                                       ########   200.0 ms  a=b  pid=7\n" +
		"  never ended                                      #        0.0 ms\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestWaterfallOnTerminals(t *testing.T) {
	for name, style := range map[string]Style{
		"narrow": {Columns: 1}, "default": {}, "wide": {Columns: 400},
		"unicode": {Columns: 100, Unicode: true}, "color": {Columns: 100, Unicode: true, Color: true},
	} {
		t.Run(name, func(t *testing.T) {
			spans := example()
			for i := range spans {
				spans[i].Attributes = nil
			}
			var out strings.Builder
			if err := Waterfall(&out, spans, style); err != nil {
				t.Fatal(err)
			}
			text := out.String()
			if style.Color != strings.Contains(text, "\x1b[") {
				t.Errorf("escapes: %q", text)
			}
			for _, c := range append(colors, plain, dim) {
				text = strings.ReplaceAll(text, c, "")
			}
			lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			if len(lines) != len(spans) {
				t.Fatalf("%d lines for %d spans", len(lines), len(spans))
			}
			for _, l := range lines {
				if got, want := utf8.RuneCountInString(l), utf8.RuneCountInString(lines[0]); got != want {
					t.Errorf("not aligned: %d columns, the first line %d: %q", got, want, l)
				}
				if style.Columns >= 40 && utf8.RuneCountInString(l) != style.Columns {
					t.Errorf("%d columns, want %d", utf8.RuneCountInString(l), style.Columns)
				}
				if !style.Unicode && len(l) != utf8.RuneCountInString(l) {
					t.Errorf("not ASCII: %q", l)
				}
				if style.Unicode && !strings.ContainsAny(l, "█▏▎▍▌▋▊▉") {
					t.Errorf("no bar: %q", l)
				}
			}
		})
	}
}

func TestWaterfallOfLittle(t *testing.T) {
	now := time.Now()
	for name, spans := range map[string][]Span{
		"nothing":      nil,
		"an instant":   {{ID: 1, Name: "x", Start: now, End: now}},
		"own parent":   {{ID: 1, Parent: 1, Name: "x", Start: now, End: now}},
		"a cycle":      {{ID: 1, Parent: 2, Name: "x", Start: now, End: now}, {ID: 2, Parent: 1, Name: "y", Start: now, End: now}},
		"no id at all": {{Name: "x"}, {Name: "y"}},
	} {
		var out strings.Builder
		if err := Waterfall(&out, spans, Style{Unicode: true}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := strings.Count(out.String(), "\n"); got != len(spans) {
			t.Errorf("%s: %d lines for %d spans", name, got, len(spans))
		}
	}
}
