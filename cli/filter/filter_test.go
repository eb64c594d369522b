package filter

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	s, err := Parse([]string{"status=running", "status=exited", "label=a=b", "Name = web ", "label!=x"}, "status", "label", "name", "label!")
	if err != nil {
		t.Fatal(err)
	}
	if !s.Exact("status", "exited") || s.Exact("status", "paused") || !s.Exact("id", "anything") {
		t.Errorf("status: %v", s)
	}
	if s["label"][0] != "a=b" || s["name"][0] != "web" || s["label!"][0] != "x" {
		t.Errorf("got %v", s)
	}
	for _, bad := range []string{"status", "nope=1", ""} {
		if _, err := Parse([]string{bad}, "status"); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestMatch(t *testing.T) {
	tests := []struct {
		value, text string
		want        bool
	}{
		{"web", "web", true}, {"web", "my-web-1", true}, {"^web$", "my-web", false},
		{"w.b", "web", true}, {"db", "web", false}, {"a[", "xa[", true},
	}
	for _, tt := range tests {
		if got := (Set{"name": {tt.value}}).Match("name", tt.text); got != tt.want {
			t.Errorf("%q in %q: got %v", tt.value, tt.text, got)
		}
	}
	if !(Set{"name": {"a", "b"}}).Match("name", "b") {
		t.Error("values are not alternatives")
	}
	if !(Set{}).Match("name", "b") {
		t.Error("no condition does not match")
	}
}

func TestLabels(t *testing.T) {
	labels := map[string]string{"a": "1", "b": ""}
	tests := []struct {
		name  string
		want  []string
		all   bool
		none  bool
		label string
	}{
		{"no condition", nil, true, true, ""},
		{"present", []string{"a"}, true, false, ""},
		{"equal", []string{"a=1"}, true, false, ""},
		{"empty value", []string{"b="}, true, false, ""},
		{"other value", []string{"a=2"}, false, true, ""},
		{"absent", []string{"c"}, false, true, ""},
		{"one of two", []string{"a", "c"}, false, false, ""},
	}
	for _, tt := range tests {
		s := Set{"label": tt.want}
		if s.Labels("label", labels) != tt.all || s.NoLabels("label", labels) != tt.none {
			t.Errorf("%s: all %v, none %v", tt.name, s.Labels("label", labels), s.NoLabels("label", labels))
		}
	}
}

func TestBool(t *testing.T) {
	tests := []struct {
		values     []string
		value, set bool
		ok         bool
	}{
		{nil, false, false, true}, {[]string{"true"}, true, true, true}, {[]string{"0"}, false, true, true},
		{[]string{"maybe"}, false, true, false}, {[]string{"true", "false"}, false, true, false},
	}
	for _, tt := range tests {
		v, set, err := (Set{"dangling": tt.values}).Bool("dangling")
		if v != tt.value || set != tt.set || (err == nil) != tt.ok {
			t.Errorf("%v: got %v, %v, %v", tt.values, v, set, err)
		}
	}
}

func TestTime(t *testing.T) {
	zone := time.FixedZone("X", 3600)
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, zone)
	tests := []struct {
		in   string
		want time.Time
	}{
		{"42m", now.Add(-42 * time.Minute)},
		{"1h30m", now.Add(-90 * time.Minute)},
		{"2024-01-02T03:04:05Z", time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)},
		{"2024-01-02T03:04:05.25+02:00", time.Date(2024, 1, 2, 1, 4, 5, 25e7, time.UTC)},
		{"2024-01-02T03:04:05", time.Date(2024, 1, 2, 3, 4, 5, 0, zone)},
		{"2024-01-02T03:04", time.Date(2024, 1, 2, 3, 4, 0, 0, zone)},
		{"2024-01-02", time.Date(2024, 1, 2, 0, 0, 0, 0, zone)},
		{"1700000000", time.Unix(1700000000, 0)},
		{"1700000000.5", time.Unix(1700000000, 5e8)},
		{"0", time.Unix(0, 0)},
	}
	for _, tt := range tests {
		got, err := Time(tt.in, now)
		if err != nil || !got.Equal(tt.want) {
			t.Errorf("%s: got %v, %v, want %v", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "yesterday", "12:00", "-", "1.2.3", "99999999999999"} {
		if got, err := Time(bad, now); err == nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}
