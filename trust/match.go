package trust

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// DifferenceError says what of a container differs from the manifest.
type DifferenceError struct {
	// Field is its path in the manifest, like containers[0].args[2].
	Field string
	// Manifest and Request are the two values as text.
	Manifest, Request string
}

func (e *DifferenceError) Error() string {
	return fmt.Sprintf("%s: the manifest says %s, the request %s", e.Field, e.Manifest, e.Request)
}

// Match compares what a request asks for with the manifest's container of this index. Its error is a
// DifferenceError for the first member that differs.
func (m *Manifest) Match(index int, c *Container) error {
	if index >= len(m.Containers) {
		return &DifferenceError{fmt.Sprintf("containers[%d]", index), "that there are " + fmt.Sprint(len(m.Containers)), "one more"}
	}
	want := m.Containers[index]
	want.Image, c.Image = "", ""
	c.Completes = want.Completes // an order, not a member of the request
	for i := range c.Files {
		f := &c.Files[i]
		if i < len(want.Files) && want.Files[i].Form != "" && want.Files[i].Path == f.Path {
			if err := f.vary(want.Files[i], c.Hostname); err != nil {
				return &DifferenceError{fmt.Sprintf("containers[%d].files[%d]", index, i), "a file of the form " + want.Files[i].Form, "one that " + err.Error()}
			}
		}
	}
	return differ(fmt.Sprintf("containers[%d]", index), reflect.ValueOf(want), reflect.ValueOf(*c))
}

// differ compares two values of one type.
func differ(path string, want, got reflect.Value) error {
	switch want.Kind() {
	case reflect.Struct:
		for i := range want.NumField() {
			if !want.Type().Field(i).IsExported() {
				continue
			}
			name, _, _ := strings.Cut(want.Type().Field(i).Tag.Get("json"), ",")
			if err := differ(path+"."+name, want.Field(i), got.Field(i)); err != nil {
				return err
			}
		}
		return nil
	case reflect.Slice:
		for i := range min(want.Len(), got.Len()) {
			if err := differ(fmt.Sprintf("%s[%d]", path, i), want.Index(i), got.Index(i)); err != nil {
				return err
			}
		}
		switch {
		case want.Len() > got.Len():
			return &DifferenceError{fmt.Sprintf("%s[%d]", path, got.Len()), show(want.Index(got.Len())), "nothing"}
		case want.Len() < got.Len():
			return &DifferenceError{fmt.Sprintf("%s[%d]", path, want.Len()), "nothing", show(got.Index(want.Len()))}
		}
		return nil
	case reflect.Map:
		var keys []string
		for _, m := range []reflect.Value{want, got} {
			for _, k := range m.MapKeys() {
				keys = append(keys, k.String())
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			a, b := want.MapIndex(reflect.ValueOf(k)), got.MapIndex(reflect.ValueOf(k))
			if !a.IsValid() || !b.IsValid() || a.String() != b.String() {
				return &DifferenceError{fmt.Sprintf("%s[%s]", path, k), show(a), show(b)}
			}
		}
		return nil
	case reflect.Pointer:
		if want.IsNil() || got.IsNil() {
			if want.IsNil() != got.IsNil() {
				return &DifferenceError{path, show(want), show(got)}
			}
			return nil
		}
		return differ(path, want.Elem(), got.Elem())
	}
	if !want.Equal(got) {
		return &DifferenceError{path, show(want), show(got)}
	}
	return nil
}

// maxShown bounds a value in a message, bytes.
const maxShown = 200

func show(v reflect.Value) string {
	if !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return "nothing"
	}
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	text := fmt.Sprintf("%v", v)
	if v.Kind() == reflect.String {
		text = fmt.Sprintf("%q", v.String())
	}
	if len(text) > maxShown {
		text = text[:maxShown] + "..."
	}
	return text
}
