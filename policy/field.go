package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxList bounds each list.
const maxList = 1024

// field is a value of the file, with its path in it ("mounts.allow[0].path").
type field struct {
	node *yaml.Node
	path string
	// line is where it is named.
	line int
}

// wrong is an error about a field.
func (f field) wrong(format string, args ...any) error {
	name := f.path
	if name == "" {
		name = "the file"
	}
	return fmt.Errorf("line %d: %s: %w", f.node.Line, name, fmt.Errorf(format, args...))
}

// plain refuses what of YAML a policy has no use for: what is meant should be where it is looked for.
func (f field) plain() error {
	n := f.node
	switch {
	case n.Kind == yaml.AliasNode:
		return f.wrong("refers to another place by *%s: write it out", n.Value)
	case n.Anchor != "":
		return f.wrong("has an anchor (&%s), which nothing can refer to", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		return f.wrong("has a tag (%s): types are those of the fields", n.Tag)
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return f.wrong("has no value")
	}
	return nil
}

// member reads one field of a mapping.
type member struct {
	name string
	read func(field) error
}

// mapping reads a mapping that has some of the members, each once, and no others.
func (f field) mapping(members ...member) error {
	if err := f.plain(); err != nil {
		return err
	}
	if f.node.Kind != yaml.MappingNode {
		return f.wrong("want fields with values, have %s", kindOf(f.node))
	}
	lines := make(map[string]int)
	for i := 0; i+1 < len(f.node.Content); i += 2 {
		key, value := f.node.Content[i], f.node.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return field{key, f.path, key.Line}.wrong("a field's name is %s", kindOf(key))
		}
		path := key.Value
		if f.path != "" {
			path = f.path + "." + key.Value
		}
		at := field{key, path, key.Line}
		if err := at.plain(); err != nil {
			return err
		}
		if line, twice := lines[key.Value]; twice {
			return at.wrong("is there already, in line %d", line)
		}
		lines[key.Value] = key.Line
		m := slices.IndexFunc(members, func(m member) bool { return m.name == key.Value })
		if m < 0 {
			var names []string
			for _, m := range members {
				names = append(names, m.name)
			}
			return at.wrong("there is no such field: there are %s", strings.Join(names, ", "))
		}
		if err := members[m].read(field{value, path, key.Line}); err != nil {
			return err
		}
	}
	return nil
}

// list reads each element of a sequence.
func (f field) list(read func(field) error) error {
	if err := f.plain(); err != nil {
		return err
	}
	if f.node.Kind != yaml.SequenceNode {
		return f.wrong("want a list, have %s", kindOf(f.node))
	}
	if n := len(f.node.Content); n > maxList {
		return f.wrong("has %d entries, at most %d are possible", n, maxList)
	}
	for i, n := range f.node.Content {
		if err := read(field{n, fmt.Sprintf("%s[%d]", f.path, i), n.Line}); err != nil {
			return err
		}
	}
	return nil
}

// scalar returns the text of a single value of one of some types.
func (f field) scalar(want string, tags ...string) (string, error) {
	if err := f.plain(); err != nil {
		return "", err
	}
	if f.node.Kind != yaml.ScalarNode || !slices.Contains(tags, f.node.Tag) {
		return "", f.wrong("want %s, have %s", want, kindOf(f.node))
	}
	return f.node.Value, nil
}

// text returns a string that is not empty.
func (f field) text() (string, error) {
	s, err := f.scalar("a text", "!!str")
	if err == nil && s == "" {
		err = f.wrong("is empty")
	}
	return s, err
}

// bool returns true or false, spelled so.
func (f field) bool() (bool, error) {
	s, err := f.scalar("true or false", "!!bool")
	if err != nil {
		return false, err
	}
	v, err := strconv.ParseBool(strings.ToLower(s))
	if err != nil {
		return false, f.wrong("want true or false, have %q", s)
	}
	return v, nil
}

// into reads a value of a type into a variable.
func into[T any](v *T, read func(field) (T, error)) func(field) error {
	return func(f field) (err error) {
		*v, err = read(f)
		return err
	}
}

// each reads a list of values of a type into a variable, which is not nil then.
func each[T any](v *[]T, read func(field) (T, error)) func(field) error {
	return func(f field) error {
		values := []T{}
		err := f.list(func(f field) error {
			one, err := read(f)
			values = append(values, one)
			return err
		})
		*v = values
		return err
	}
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "fields with values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "a reference"
	}
	switch n.Tag {
	case "!!str":
		return fmt.Sprintf("the text %.40q", n.Value)
	case "!!null":
		return "nothing"
	}
	return fmt.Sprintf("%.40q", n.Value)
}
