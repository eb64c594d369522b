package validation

import (
	"os"
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		name, output string
		exit         int
		want         Verdict
	}{
		{"all is well", "TAP version 13\nok 1 - a\nok 2 - b # SKIP not here\n1..2\n", 0, Passes},
		{"one is not", "ok 1 - a\nnot ok 2 - b\n1..2\n", 0, Fails},
		{"one is not, as expected", "ok 1 - a\nnot ok 2 - b # TODO later\n", 0, Passes},
		{"an error after all", "ok 1 - a\n", 1, Fails},
		{"a diagnostic of something that passed", "ok 1 - a\n  ---\n  {\n    \"error\": \"as it should\"\n  }\n", 0, Passes},
		{"an error in a diagnostic alone", "TAP version 13\n  ---\n  {\n    \"error\": \"no\"\n  }\n  ...\n1..0\n", 0, Fails},
		{"nothing to say", "TAP version 13\n1..0\n", 0, Passes},
		{"an error expected, before any test", "", 0, Passes},
		{"all skipped", "ok 1 # SKIP linux only\n", 0, Fails},
	} {
		if got, why := judge(test.output, test.exit); got != test.want {
			t.Errorf("%s: %s (%s)", test.name, got, why)
		}
	}
}

func TestList(t *testing.T) {
	const head = "# Title\n\n| a | b |\n|---|---|\n\ntext\n\n| test | runc | manis | reason |\n|---|---|---|---|\n"
	list, err := ParseList(head + "| `a` | passes | fails | for a reason |\n| `b` | passes | passes | |\n| `c` | varies | varies | a race |\n\n| more | x |\n")
	if err != nil || len(list) != 3 || list["a"].Verdicts["manis"] != Fails || list["a"].Reason != "for a reason" {
		t.Fatalf("%v, %v", list, err)
	}
	got := compare(list, "manis", map[string]Verdict{"a": Passes, "b": Passes, "c": Fails, "d": Passes})
	if want := "a passes, and the list says that it fails\nd is not in the list"; strings.Join(got, "\n") != want {
		t.Errorf("differences:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	for what, rows := range map[string]string{
		"no reason":   "| `a` | passes | fails | |\n",
		"no verdict":  "| `a` | passes | well | x |\n",
		"twice":       "| `a` | passes | passes | |\n| `a` | passes | passes | |\n",
		"a cell less": "| `a` | passes | passes |\n",
		"no rows":     "",
	} {
		if _, err := ParseList(head + rows); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// What runc passes and Manis does not has a reason: nothing is listed as failing without one.
func TestPublishedList(t *testing.T) {
	text, err := os.ReadFile("../../docs/VALIDATION.md")
	if err != nil {
		t.Fatal(err)
	}
	list, err := ParseList(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range list {
		if len(row.Verdicts) != 2 || row.Verdicts["runc"] == "" || row.Verdicts["manis"] == "" {
			t.Errorf("%s: verdicts %v", name, row.Verdicts)
		}
	}
}
