package main

import (
	"strings"
	"testing"
)

func ratio(of, to string, low, median, high float64) Ratio {
	return Ratio{Of: of, To: to, Low: low, Median: median, High: high, Rounds: 5}
}

func TestJudge(t *testing.T) {
	before := ratio("manis", "runc", 9, 10, 11)
	for name, c := range map[string]struct {
		low, median, high, contention float64
		want                          verdictKind
	}{
		"the same":                       {9, 10, 11, 1, good},
		"within the allowance":           {15, 15.9, 17, 1, good},
		"beyond it":                      {15, 16.1, 17, 1, worse},
		"beyond it, but all over":        {10.9, 16.1, 30, 1, good},
		"beyond it, on a busy machine":   {15, 16.1, 17, 1.4, undecided},
		"far beyond, on a busy machine":  {24, 25.1, 27, 3, worse},
		"somewhat faster":                {6, 7, 8, 1, good},
		"much faster":                    {4, 5, 6, 1, better},
		"much faster, but all over":      {4, 5, 12, 1, good},
		"much faster, on a busy machine": {4, 5, 6, 3, better},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge(ratio("manis", "runc", c.low, c.median, c.high), before, c.contention).kind; got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// What cannot be compared is said and is no failure, unless it is Manis that did not start.
func TestCompare(t *testing.T) {
	before := []Ratio{ratio("manis, a", "runc", 9, 10, 11), ratio("manis, a", "runsc", 2, 3, 4), ratio("manis, b", "runc", 1, 2, 3)}
	now := []Ratio{ratio("manis, a", "runc", 19, 20, 21), ratio("manis, new", "runc", 1, 2, 3)}
	list := compare(now, before, 1, map[string]string{"runsc": "not installed", "manis, b": "no machine"})
	var got []string
	for _, v := range list {
		got = append(got, v.String())
	}
	for i, want := range []string{"WORSE", "skipped", "WORSE", "not accepted yet"} {
		if len(got) != 4 || !strings.HasPrefix(got[i], want+" ") {
			t.Fatalf("%q", got)
		}
	}
	for i, want := range []string{"manis, a/runc: 20.0 (19.0 to 21.0 in 5 rounds), accepted 10.0 (9.00 to 11.0)", "manis, a/runsc: not installed", "manis, b/runc: no machine", "manis, new/runc: 2.00"} {
		if !strings.Contains(got[i], want) {
			t.Errorf("%q lacks %q", got[i], want)
		}
	}
	if suspects := strings.Join(doubted(list), "; "); suspects != "manis, a; manis, b; runc" {
		t.Errorf("to be measured again: %s", suspects)
	}
	if list := compare(nil, before[2:], 2, map[string]string{"manis, b": "no machine"}); len(list) != 1 || list[0].kind != undecided {
		t.Errorf("on a busy machine: %v", list)
	}
	if list := compare(nil, nil, 1, nil); len(list) != 0 {
		t.Errorf("%v", list)
	}
}

// A failure names the phase that grew most, not the longest nor the one that grew by the
// largest factor.
func TestGrown(t *testing.T) {
	before, now := ratio("manis", "runc", 9, 10, 11), ratio("manis", "runc", 19, 20, 21)
	before.Phases = map[string]float64{"boot": 5, "boot/agent": 1, "gone": 3, "tiny": 0.01}
	now.Phases = map[string]float64{"boot": 6, "boot/agent": 4, "tiny": 0.5, "new": 2}
	if phase, was, is := grown(now, before); phase != "boot/agent" || was != 1 || is != 4 {
		t.Errorf("%s %v %v", phase, was, is)
	}
	if s := judge(now, before, 1).String(); !strings.Contains(s, `grew most: "boot/agent", from 1.00 to 4.00 starts of runc`) {
		t.Error(s)
	}
	now.Phases["new"] = 4
	if phase, was, is := grown(now, before); phase != "new" || was != 0 || is != 4 {
		t.Errorf("%s %v %v", phase, was, is)
	}
	if phase, _, _ := grown(before, before); phase != "" {
		t.Errorf("%s has grown", phase)
	}
	now.Phases = nil
	if s := judge(now, before, 1).String(); strings.Contains(s, "grew") {
		t.Error(s)
	}
}
