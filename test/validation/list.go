package validation

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Row is a test in the published list.
type Row struct {
	// Verdicts are by runtime, as the head of the table names it.
	Verdicts map[string]Verdict
	Reason   string
}

// ParseList reads the table of a Markdown file whose head begins with "test" and ends with "reason".
func ParseList(text string) (map[string]*Row, error) {
	var head []string
	rows := make(map[string]*Row)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if head != nil {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i, c := range cells {
			cells[i] = strings.TrimSpace(c)
		}
		switch {
		case head == nil && cells[0] == "test" && cells[len(cells)-1] == "reason":
			head = cells
			continue
		case head == nil, strings.Trim(cells[0], "-:") == "":
			continue
		case len(cells) != len(head):
			return nil, fmt.Errorf("the list's row %q has not %d cells", line, len(head))
		}
		name := strings.Trim(cells[0], "`")
		if rows[name] != nil {
			return nil, fmt.Errorf("the list has %s twice", name)
		}
		row := &Row{Verdicts: make(map[string]Verdict), Reason: cells[len(cells)-1]}
		for i, runtime := range head[1 : len(head)-1] {
			v := Verdict(cells[i+1])
			if v != Passes && v != Fails && v != Varies {
				return nil, fmt.Errorf("the list says %q of %s: want %s, %s or %s", v, name, Passes, Fails, Varies)
			}
			if v != Passes && row.Reason == "" {
				return nil, fmt.Errorf("the list gives no reason why %s %s with %s", name, v, runtime)
			}
			row.Verdicts[runtime] = v
		}
		rows[name] = row
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("there is no list of tests")
	}
	return rows, nil
}

// compare says where verdicts differ from the list's for a runtime.
func compare(list map[string]*Row, runtime string, verdicts map[string]Verdict) []string {
	var differ []string
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		row := list[name]
		if row == nil {
			differ = append(differ, name+" is not in the list")
			continue
		}
		if want, got := row.Verdicts[runtime], verdicts[name]; want != Varies && want != got {
			differ = append(differ, fmt.Sprintf("%s %s, and the list says that it %s", name, got, want))
		}
	}
	return differ
}
