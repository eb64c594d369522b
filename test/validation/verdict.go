package validation

import (
	"regexp"
	"strings"
)

// A Verdict is what a test says in the end.
type Verdict string

// Varies is for tests of a race: the list has it, a run never.
const (
	Passes Verdict = "passes"
	Fails  Verdict = "fails"
	Varies Verdict = "varies"
)

var (
	excused  = regexp.MustCompile(`(?i)# *(skip|todo)`)
	anyError = regexp.MustCompile(`(?m)^\s*"error":`)
)

// judge reads a test's output, in the Test Anything Protocol. Some tests say in a diagnostic alone that
// something went wrong, print a plan of none and end with 0.
func judge(output string, exit int) (v Verdict, why string) {
	passed, skipped := 0, 0
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "not ok") && !excused.MatchString(line):
			return Fails, line
		case strings.HasPrefix(line, "ok") && excused.MatchString(line):
			skipped++
		case strings.HasPrefix(line, "ok"):
			passed++
		}
	}
	switch {
	case exit != 0:
		return Fails, "it ended with an error"
	case passed > 0:
		return Passes, ""
	case skipped > 0:
		return Fails, "all of it was skipped"
	case anyError.MatchString(output):
		at := anyError.FindStringIndex(output)
		line, _, _ := strings.Cut(strings.TrimLeft(output[at[0]:], "\n"), "\n")
		return Fails, strings.TrimSpace(line)
	}
	return Passes, ""
}
