package report_test

import (
	"bytes"
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"manis/audit"
	"manis/audit/audittest"
	"manis/audit/report"
)

func write(t *testing.T, r *audit.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := report.Write(&b, r); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, active := range []string{"<script", "<img", "<a ", "<link", "<iframe", "http-equiv=\"refresh", "src=", "href=", "url("} {
		if strings.Contains(strings.ToLower(page), active) {
			t.Errorf("the page has %s", active)
		}
	}
	wellFormed(t, page)
	return page
}

// wellFormed checks that every element is closed where it should be: nothing has got out of its place.
func wellFormed(t *testing.T, page string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(page))
	for {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("the page is broken: %v", err)
		}
	}
}

func has(t *testing.T, page string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(page, w) {
			t.Errorf("the page has no %q", w)
		}
	}
}

func TestReport(t *testing.T) {
	good := audittest.New(t, audittest.Manifest(), func(l *audit.Log) {
		l.Add(audit.Created, map[string]string{"container": "0", "root": "abcd"})
		l.Add(audit.Denied, map[string]string{"request": "Exec", "reason": "not in the manifest"})
		l.Add(audit.Exited, map[string]string{"container": "0", "code": "0"})
	})
	t.Run("verified", func(t *testing.T) {
		page := write(t, audit.Examine(audittest.File(t, good), audittest.Expect()))
		has(t, page, "<strong>Verified.</strong>", "hardware: none", "&#34;cat&#34; &#34;/run/greeting&#34;", "denials written down: 1", "not in the manifest",
			"supports:", "10.3.2", "Article 12(2)(d)", "Article 9(4)(e)", "8.1.4.6", "the reference values do not name it")
		if strings.Contains(page, "does not support it") {
			t.Error("a clause is not supported by a whole bundle")
		}
	})
	t.Run("refused", func(t *testing.T) {
		bad := *good
		bad.Entries = append(bad.Entries[:2:2], bad.Entries[3:]...)
		r := audit.Examine(audittest.File(t, &bad), audittest.Expect())
		page := write(t, r)
		has(t, page, "<strong>Refused.</strong>", "events are missing", "No events were verified", "does not support it: the check “events”")
		if r.Err() == nil || strings.Contains(page, "Verified.") || strings.Contains(page, "not in the manifest") {
			t.Error("the report of a refused bundle shows what was not verified")
		}
	})
	t.Run("unfinished", func(t *testing.T) {
		bad := *good
		bad.Entries = bad.Entries[:3]
		page := write(t, audit.Examine(audittest.File(t, &bad), audittest.Expect()))
		has(t, page, "<strong>Not finished.</strong>", "the log has no end", "does not support it: the check “end”", "attestations: 1")
	})
	t.Run("without keys", func(t *testing.T) {
		page := write(t, audit.Examine(audittest.File(t, good), audit.Expect{}))
		has(t, page, "<strong>Not verified.</strong>", "hardware: not known", "no manifest in the bundle was verified")
		if strings.Contains(page, "supports:") {
			t.Error("a clause is supported by what nobody has verified")
		}
	})
	t.Run("no bundle", func(t *testing.T) {
		page := write(t, audit.Examine([]byte("</p><script>alert(1)</script>"), audittest.Expect()))
		has(t, page, "<strong>Refused.</strong>")
	})
}

// TestReportEscapes: the owner and the host of a run are nobody to trust with the auditor's browser.
func TestReportEscapes(t *testing.T) {
	evil := `</code></td><script>alert(1)</script><img src=x onerror=alert(1)>"'&` + "\u202e\x01"
	m := audittest.Manifest()
	c := &m.Containers[0]
	c.Image, c.Cwd, c.User, c.Root.Hash = evil, evil, evil, evil
	c.Args, c.Env, c.Capabilities.Effective = []string{evil, ""}, []string{strings.Repeat("x", 100000)}, []string{evil}
	b := audittest.New(t, m, func(l *audit.Log) {
		l.Add(evil, map[string]string{evil: evil, "reason": evil})
		l.Add(audit.Denied, map[string]string{"reason": strings.Repeat("y", 100000)})
	})
	r := audit.Examine(audittest.File(t, b), audittest.Expect())
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	// Characters that XML has no place for are no matter here.
	var page bytes.Buffer
	if err := report.Write(&page, r); err != nil {
		t.Fatal(err)
	}
	got := page.String()
	if strings.Contains(got, "<script") || strings.Contains(got, "<img") || !strings.Contains(got, "&lt;script&gt;") {
		t.Error("a value of the bundle is not escaped")
	}
	if strings.Contains(got, "\u202e") || strings.Contains(got, "\x01") {
		t.Error("a value of the bundle can turn the page's text around")
	}
	if len(got) > 60000 {
		t.Errorf("the page has %d bytes: a value is not bounded", len(got))
	}
	has(t, got, "a kind of event that this release does not know", "more characters")
}
