package pool

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestStartsAreCounted(t *testing.T) {
	var k keeping
	k.Pool = new(Pool)
	for _, m := range []string{
		`{"what":"pod","result":"started","seconds":0.3}`, `{"what":"pod","result":"started","seconds":7}`, `{"what":"pod","result":"late","seconds":240}`,
		`{"what":"container","result":"refused","seconds":0}`,
	} {
		s, err := parseStart([]byte(m))
		if err != nil {
			t.Fatal(err)
		}
		k.started(s)
	}
	var b bytes.Buffer
	if err := WriteMetrics(&b, State{Starts: k.startStates()}); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`manis_starts_total{what="pod",result="started"} 2`, `manis_starts_total{what="pod",result="late"} 1`, `manis_starts_total{what="pod",result="failed"} 0`,
		`manis_starts_total{what="container",result="refused"} 1`, `manis_start_seconds_bucket{what="pod",le="0.5"} 1`, `manis_start_seconds_count{what="pod"} 2`,
		`manis_start_seconds_sum{what="pod"} 7.3`, `manis_start_seconds_count{what="container"} 0`,
	} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("no %s in\n%s", line, &b)
		}
	}
}

func TestStartsThatAreNone(t *testing.T) {
	for _, m := range []string{"", "{}", `{"what":"pod"}`, `{"what":"planet","result":"started","seconds":1}`, `{"what":"pod","result":"odd","seconds":1}`,
		`{"what":"pod","result":"started","seconds":-1}`, `{"what":"pod","result":"started","seconds":1e300}`} {
		if s, err := parseStart([]byte(m)); err == nil {
			t.Errorf("%s is taken for %+v", m, s)
		}
	}
}

// TestDashboard looks whether the dashboard asks for metrics that there are.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../deploy/grafana/manis.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Query string } }
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	k := keeping{Pool: new(Pool)}
	if err := WriteMetrics(&b, State{Sizes: []SizeState{{Kind: Kind{Key: "x"}}}, Starts: k.startStates()}); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(b.String(), -1) {
		kinds[m[1]] = m[2]
	}
	labels := map[string]bool{"instance": true} // Prometheus' own
	for _, m := range regexp.MustCompile(`[{,]([a-z]+)=`).FindAllStringSubmatch(b.String(), -1) {
		labels[m[1]] = true
	}
	names, by := regexp.MustCompile(`manis_[a-z_]+`), regexp.MustCompile(`by \(([^)]*)\)`)
	asked := 0
	check := func(where, expr string) {
		for _, name := range names.FindAllString(expr, -1) {
			asked++
			base, bucket := strings.CutSuffix(name, "_bucket")
			switch kind := kinds[base]; {
			case kind == "" || bucket != (kind == "histogram"):
				t.Errorf("%s asks for %s, which does not exist", where, name)
			case (kind != "gauge") != strings.Contains(expr, "rate("+name):
				t.Errorf("%s: %s is a %s: %s", where, name, kind, expr)
			}
		}
		for _, m := range by.FindAllStringSubmatch(expr, -1) {
			for label := range strings.SplitSeq(m[1], ", ") {
				if !labels[label] {
					t.Errorf("%s goes by the label %s, which nothing has", where, label)
				}
			}
		}
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
		}
		if len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
	}
	for _, v := range board.Templating.List {
		check("a variable", v.Query)
	}
	if asked < 10 {
		t.Errorf("the dashboard asks for %d metrics", asked)
	}
}
