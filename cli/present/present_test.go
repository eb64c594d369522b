package present

import (
	"strings"
	"testing"
)

type row struct {
	ID, Name, Labels string
	title            bool
}

func (r row) Label(key string) string {
	if r.title {
		return key
	}
	for pair := range strings.SplitSeq(r.Labels, ",") {
		if k, v, _ := strings.Cut(pair, "="); k == key {
			return v
		}
	}
	return ""
}

var header = row{ID: "CONTAINER ID", Name: "NAMES", Labels: "LABELS", title: true}

func TestList(t *testing.T) {
	rows := []row{{ID: "1", Name: "web", Labels: "a=b,c=d"}, {ID: "2", Name: "a long name"}}
	const normal = "{{.ID}}\t{{.Name}}"
	tests := []struct {
		name, format, want string
	}{
		{"normal", "", "CONTAINER ID   NAMES\n1              web\n2              a long name\n"},
		{"table", "table", "CONTAINER ID   NAMES\n1              web\n2              a long name\n"},
		{"table of the user's", `table {{.Name}}\t{{.ID}}`, "NAMES         CONTAINER ID\nweb           1\na long name   2\n"},
		{"titles pass functions", `table {{upper .Name}}`, "NAMES\nWEB\nA LONG NAME\n"},
		{"a label's column", `table {{.Label "c"}}`, "c\nd\n\n"},
		{"json", "json", `{"ID":"1","Name":"web","Labels":"a=b,c=d"}` + "\n" + `{"ID":"2","Name":"a long name","Labels":""}` + "\n"},
		{"template", `{{.ID}}:{{.Name}}`, "1:web\n2:a long name\n"},
		{"escapes", `{{.ID}}\t\n`, "1\t\n\n2\t\n\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			if err := List(&b, tt.format, normal, header, rows); err != nil {
				t.Fatal(err)
			}
			if b.String() != tt.want {
				t.Errorf("got\n%q, want\n%q", b.String(), tt.want)
			}
		})
	}
}

func TestListRefusesBadTemplates(t *testing.T) {
	for _, format := range []string{"{{", "{{.Nope}}", "table {{.Nope}}", "{{nope .ID}}"} {
		var b strings.Builder
		err := List(&b, format, "{{.ID}}", header, []row{{ID: "1"}})
		if err == nil || !strings.Contains(err.Error(), "template") {
			t.Errorf("%s: got error %v", format, err)
		}
		if b.Len() != 0 && !strings.HasPrefix(format, "table") {
			t.Errorf("%s: wrote %q before failing", format, b.String())
		}
	}
}

func TestFunctions(t *testing.T) {
	tests := []struct{ template, want string }{
		{`{{json .List}}`, `["a","b<"]`},
		{`{{join .List "+"}}`, "a+b<"},
		{`{{join .Numbers ","}}`, "1,2"},
		{`{{split .Text ","}}`, "[Some text  more]"},
		{`{{title .Lower}}`, "One Two"},
		{`{{lower .Text}}{{upper .Text}}`, "some text, moreSOME TEXT, MORE"},
		{`{{pad .Lower 1 2}}|`, " one two  |"},
		{`{{truncate .Lower 3}}`, "one"},
		{`{{truncate .Lower 30}}`, "one two"},
		{`{{range .List}}{{println .}}{{end}}`, "a\nb<\n"},
	}
	v := struct {
		List    []string
		Numbers []int
		Text    string
		Lower   string
	}{[]string{"a", "b<"}, []int{1, 2}, "Some text, more", "one two"}
	for _, tt := range tests {
		tmpl, err := Template(tt.template)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := tmpl.Execute(&b, v); err != nil || b.String() != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.template, b.String(), err, tt.want)
		}
	}
}

func TestInspect(t *testing.T) {
	type state struct {
		PID int `json:"Pid"`
	}
	type object struct {
		ID    string `json:"Id"`
		State state
		Map   map[string]string
	}
	objects := []any{object{ID: "x", State: state{7}, Map: map[string]string{"k": "v"}}}
	tests := []struct{ name, format, want string }{
		{"indented", "", "[\n    {\n        \"Id\": \"x\",\n        \"State\": {\n            \"Pid\": 7\n        },\n        \"Map\": {\n            \"k\": \"v\"\n        }\n    }\n]\n"},
		{"json", "json", `[{"Id":"x","State":{"Pid":7},"Map":{"k":"v"}}]` + "\n"},
		{"go name", "{{.ID}}", "x\n"},
		{"json name", "{{.Id}} {{.State.Pid}}", "x 7\n"},
		{"map", "{{.Map.k}}", "v\n"},
		{"index", `{{index .Map "k"}}`, "v\n"},
		{"json of part", "{{json .State}}", `{"Pid":7}` + "\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			if err := Inspect(&b, tt.format, objects); err != nil {
				t.Fatal(err)
			}
			if b.String() != tt.want {
				t.Errorf("got %q, want %q", b.String(), tt.want)
			}
		})
	}
	var b strings.Builder
	if err := Inspect(&b, "{{.Nope.Deeper}}", objects); err == nil {
		t.Errorf("no error for a missing field, but %q", b.String())
	}
	if err := Inspect(&b, "", nil); err != nil || b.String() != "[]\n" {
		t.Errorf("nothing: got %q, %v", b.String(), err)
	}
}

func TestEllipsis(t *testing.T) {
	for _, tt := range []struct {
		in   string
		n    int
		want string
	}{{"short", 20, "short"}, {"exactly", 7, "exactly"}, {"too long", 4, "too…"}, {"äöü", 2, "ä…"}, {"ab", 1, "a"}} {
		if got := Ellipsis(tt.in, tt.n); got != tt.want {
			t.Errorf("Ellipsis(%q, %d) = %q, want %q", tt.in, tt.n, got, tt.want)
		}
	}
}
