// Package present writes lists of things the way docker users expect them:
// as an aligned table, as one JSON object a line, or through a Go template of
// the user's. It knows nothing of what the things are.
package present

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode/utf8"
)

// List writes rows in the given format: "" or "table" (the template normal),
// "table TEMPLATE", "json", or a template that is applied to each row.
//
// T is a struct with a string field per column. header is a T whose fields hold the
// columns' titles: a table's first line is the template applied to it.
func List[T any](w io.Writer, format, normal string, header T, rows []T) error {
	switch {
	case format == "" || format == "table":
		return table(w, normal, header, rows)
	case strings.HasPrefix(format, "table "):
		return table(w, strings.TrimPrefix(format, "table "), header, rows)
	case format == "json":
		format = "{{json .}}"
	}
	t, err := Template(format)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, row := range rows {
		if err := t.Execute(&out, row); err != nil {
			return templateError(err)
		}
		out.WriteByte('\n')
	}
	_, err = w.Write(out.Bytes())
	return err
}

func table[T any](w io.Writer, text string, header T, rows []T) error {
	t, err := Template(text)
	if err != nil {
		return err
	}
	// A title goes through the template unchanged, whatever function the
	// column goes through.
	titles, err := template.New("").Funcs(functions).Funcs(titleFunctions).Parse(unescape(text))
	if err != nil {
		return templateError(err)
	}
	aligned := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	if err := titles.Execute(aligned, header); err != nil {
		return templateError(err)
	}
	fmt.Fprintln(aligned)
	for _, row := range rows {
		if err := t.Execute(aligned, row); err != nil {
			return templateError(err)
		}
		fmt.Fprintln(aligned)
	}
	return aligned.Flush()
}

// Template parses a user's template with docker's functions.
func Template(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(functions).Parse(unescape(text))
	if err != nil {
		return nil, templateError(err)
	}
	return t, nil
}

func templateError(err error) error {
	return fmt.Errorf("template parsing error: %w", err)
}

// unescape lets users write \t and \n within shell quotes.
func unescape(s string) string {
	return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(s)
}

var functions = template.FuncMap{
	"json":     toJSON,
	"split":    strings.Split,
	"join":     join,
	"title":    title,
	"lower":    strings.ToLower,
	"upper":    strings.ToUpper,
	"pad":      pad,
	"truncate": truncate,
}

var titleFunctions = template.FuncMap{
	"json":     func(v any) string { return fmt.Sprint(v) },
	"split":    func(v any, _ string) string { return fmt.Sprint(v) },
	"join":     func(v any, _ string) string { return fmt.Sprint(v) },
	"title":    func(v any) string { return fmt.Sprint(v) },
	"lower":    func(v any) string { return fmt.Sprint(v) },
	"upper":    func(v any) string { return fmt.Sprint(v) },
	"pad":      func(v any, _, _ int) string { return fmt.Sprint(v) },
	"truncate": func(v any, _ int) string { return fmt.Sprint(v) },
}

func toJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimRight(b.String(), "\n"), nil
}

// join accepts any list, as the values of inspect are of many types.
func join(list any, sep string) (string, error) {
	if s, ok := list.([]string); ok {
		return strings.Join(s, sep), nil
	}
	v := reflect.ValueOf(list)
	if v.Kind() != reflect.Slice && v.Kind() != reflect.Array {
		return "", fmt.Errorf("join: %T is not a list", list)
	}
	parts := make([]string, v.Len())
	for i := range parts {
		parts[i] = fmt.Sprint(v.Index(i).Interface())
	}
	return strings.Join(parts, sep), nil
}

func title(s string) string {
	words := strings.Split(s, " ")
	for i, w := range words {
		if r, n := utf8.DecodeRuneInString(w); n > 0 {
			words[i] = strings.ToUpper(string(r)) + w[n:]
		}
	}
	return strings.Join(words, " ")
}

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
}

func truncate(s string, n int) string {
	if n < 0 {
		return s
	}
	runes := []rune(s)
	if len(runes) > n {
		runes = runes[:n]
	}
	return string(runes)
}

// Ellipsis shortens s to n runes, the last of them "…" when something was cut.
func Ellipsis(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	if n <= 1 {
		return string(runes[:n])
	}
	return string(runes[:n-1]) + "…"
}

// ShortID is the first 12 digits of an id, without the algorithm of a digest.
func ShortID(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	if len(id) > 12 {
		id = id[:12]
	}
	return id
}
