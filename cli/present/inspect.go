package present

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// Inspect writes objects as inspect does: without a format as an indented JSON
// list, with "json" as a list on one line, else through the template, a line each.
// The template sees the object as its JSON does: the names of its JSON fields.
func Inspect(w io.Writer, format string, objects []any) error {
	if objects == nil {
		objects = []any{}
	}
	switch format {
	case "":
		return encode(w, objects, "    ")
	case "json":
		return encode(w, objects, "")
	}
	t, err := Template(format)
	if err != nil {
		return err
	}
	// As docker: the typed object first, for its methods and number types; when
	// a field is missing there, its JSON form.
	var out bytes.Buffer
	for _, o := range objects {
		start := out.Len()
		typedErr := t.Option("missingkey=error").Execute(&out, o)
		if typedErr != nil {
			out.Truncate(start)
			generic, err := decode(o)
			if err != nil {
				return err
			}
			if err := t.Execute(&out, generic); err != nil {
				return templateError(typedErr)
			}
		}
		out.WriteByte('\n')
	}
	_, err = w.Write(out.Bytes())
	return err
}

func encode(w io.Writer, v any, indent string) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write as JSON: %w", err)
	}
	return nil
}

func decode(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write as JSON: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var generic any
	if err := d.Decode(&generic); err != nil {
		return nil, fmt.Errorf("read own JSON: %w", err)
	}
	return generic, nil
}
