// Package report writes what the examination of a bundle has shown as one page of HTML for an auditor: what ran, what
// vouches for it, what happened, and which control objectives that supports. It verifies nothing itself, and everything that it
// is given may be hostile: the page has no scripts, loads nothing, and html/template escapes every value.
package report

import (
	_ "embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode"

	"manis/audit"
	"manis/trust"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"hex": hex.EncodeToString, "text": text, "line": line,
}).Parse(page))

// Bounds of the page: of one value in runes, and of the elements of one list.
const (
	maxText = 2000
	maxList = 500
)

// view is what the page is made of.
type view struct {
	*audit.Report
	Verdict  string // verified, unfinished, refused, not verified
	Reason   string
	Hardware string // of the result; empty: nothing has vouched for anything
	Events   []event
	More     int // events that the page leaves out
	Counts   []count
	Controls []framework
}

type event struct {
	Number  uint32
	Kind    string
	Meaning string
	Details []detail
}

type detail struct{ Name, Text string }

type count struct {
	What string
	N    int
}

// Verdicts.
const (
	verified    = "verified"
	unfinished  = "unfinished"
	refused     = "refused"
	notVerified = "not verified"
)

// Write writes the page of an examination.
func Write(w io.Writer, r *audit.Report) error {
	v := view{Report: r, Verdict: verdict(r)}
	if err := r.Err(); err != nil {
		v.Reason = err.Error()
	}
	if r.Result != nil {
		v.Hardware = r.Result.Hardware
	}
	counts := make(map[string]int)
	for _, e := range r.Events {
		counts[e.Kind]++
		if len(v.Events) == maxEvents {
			v.More++
			continue
		}
		v.Events = append(v.Events, show(e))
	}
	for _, c := range []count{
		{"attestations", counts[audit.Attested]}, {"releases of secrets", counts[audit.Released]}, {"containers made", counts[audit.Created]},
		{"starts", counts[audit.Started]}, {"exits", counts[audit.Exited]}, {"denials written down", counts[audit.Denied]},
	} {
		v.Counts = append(v.Counts, c)
	}
	v.Controls = controls(r)
	if err := pageTemplate.Execute(w, v); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// maxEvents is how many events the page lists.
const maxEvents = audit.MaxEvents

func verdict(r *audit.Report) string {
	failed, skipped := false, false
	for _, f := range r.Findings {
		switch {
		case !f.Done && f.Optional:
		case !f.Done:
			skipped = true
		case f.Check == audit.CheckEnd && f.Err != nil:
			// Whatever else there is decides, and nothing else: unfinished.
		case f.Err != nil:
			failed = true
		}
	}
	switch {
	case failed:
		return refused
	case skipped:
		return notVerified
	case r.Err() != nil:
		return unfinished
	}
	return verified
}

// meanings of the kinds of events.
var meanings = map[string]string{
	audit.Admitted: "the agent took the manifest and enforces it from here on",
	audit.Attested: "the machine made evidence for this nonce",
	audit.Released: "the broker's secrets arrived, sealed to this machine",
	audit.Created:  "a container was made as the manifest says",
	audit.Started:  "its first process was started",
	audit.Denied:   "the agent refused a request of the host's",
	audit.Exited:   "a container's first process ended",
	audit.Tampered: "blocks of the container's encrypted disk were not what had been written: somebody has changed the disk, or it is broken; the container got an error instead",
	audit.Closed:   "the log ends: nothing follows",
	audit.Muted:    "from here on refusals are counted, not written down",
}

func show(e audit.Event) event {
	s := event{Number: e.Number, Kind: e.Kind, Meaning: meanings[e.Kind]}
	if s.Meaning == "" {
		s.Meaning = "a kind of event that this release does not know"
	}
	for _, name := range slices.Sorted(maps.Keys(e.What)) {
		s.Details = append(s.Details, detail{name, e.What[name]})
	}
	for _, name := range e.Withheld {
		s.Details = append(s.Details, detail{name, "withheld; the machine has signed a commitment to it: " + hex.EncodeToString(e.Committed[name])})
	}
	return s
}

// text bounds a value, and shows characters that nobody sees, or that turn the others around, by their number.
func text(s string) string {
	runes, more := []rune(s), ""
	if len(runes) > maxText {
		more = fmt.Sprintf(" … (%d more characters)", len(runes)-maxText)
		runes = runes[:maxText]
	}
	var b strings.Builder
	for _, r := range runes {
		if isHidden(r) {
			fmt.Fprintf(&b, "\\u{%x}", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String() + more
}

func isHidden(r rune) bool { return !unicode.IsPrint(r) }

// line puts a list of words on one line, each quoted, so that one can be told from two.
func line(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i == maxList {
			fmt.Fprintf(&b, " … (%d more)", len(words)-i)
			break
		}
		fmt.Fprintf(&b, "%q ", w)
	}
	return text(strings.TrimSpace(b.String()))
}

// Containers are those of the manifest, with their place.
func (v view) Containers() []trust.Container {
	if v.Manifest == nil {
		return nil
	}
	return v.Manifest.Containers
}
