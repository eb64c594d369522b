// Package filter is docker's --filter: key=value conditions on a list. Values of
// one key are alternatives, keys are added up; of labels all must match. It knows
// keys and values, not what they select.
package filter

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Set holds the conditions given on a command line.
type Set map[string][]string

// Parse reads conditions, each "key=value" or "key!=value" (kept as the key
// "key!"), and refuses keys that the command does not know.
func Parse(args []string, known ...string) (Set, error) {
	set := make(Set)
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, fmt.Errorf("invalid filter %q: expected key=value", arg)
		}
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		if !slices.Contains(known, key) {
			names := slices.Clone(known)
			slices.Sort(names)
			return nil, fmt.Errorf("invalid filter %q: known are %s", key, strings.Join(names, ", "))
		}
		if !slices.Contains(set[key], value) {
			set[key] = append(set[key], value)
		}
	}
	return set, nil
}

// Has reports whether the key is among the conditions.
func (s Set) Has(key string) bool { return len(s[key]) > 0 }

// Exact reports whether one of the key's values is v, or there is none.
func (s Set) Exact(key, v string) bool {
	return !s.Has(key) || slices.Contains(s[key], v)
}

// Any reports whether one of the key's values satisfies match, or there is none.
func (s Set) Any(key string, match func(value string) bool) bool {
	return !s.Has(key) || slices.ContainsFunc(s[key], match)
}

// Match reports whether one of the key's values, as a regular expression,
// occurs in one of the texts. A value that is none is searched for as it is.
func (s Set) Match(key string, texts ...string) bool {
	return s.Any(key, func(value string) bool {
		re, err := regexp.Compile(value)
		return slices.ContainsFunc(texts, func(text string) bool {
			return text == value || err == nil && re.MatchString(text) || err != nil && strings.Contains(text, value)
		})
	})
}

// Labels reports whether all of the key's values, KEY or KEY=VALUE, are among the
// labels.
func (s Set) Labels(key string, labels map[string]string) bool {
	for _, want := range s[key] {
		if !hasLabel(labels, want) {
			return false
		}
	}
	return true
}

// NoLabels reports whether none of the key's values is among the labels.
func (s Set) NoLabels(key string, labels map[string]string) bool {
	return !slices.ContainsFunc(s[key], func(want string) bool { return hasLabel(labels, want) })
}

func hasLabel(labels map[string]string, want string) bool {
	name, value, exact := strings.Cut(want, "=")
	got, ok := labels[name]
	return ok && (!exact || got == value)
}

// Bool reads the key's value as docker's true or false; set tells whether the
// key was there.
func (s Set) Bool(key string) (value, set bool, err error) {
	switch values := s[key]; {
	case len(values) == 0:
		return false, false, nil
	case len(values) > 1:
		return false, true, fmt.Errorf("invalid filter: %s is given both as %s", key, strings.Join(values, " and "))
	default:
		switch values[0] {
		case "1", "true", "True", "TRUE":
			return true, true, nil
		case "0", "false", "False", "FALSE":
			return false, true, nil
		}
		return false, true, fmt.Errorf("invalid filter \"%s=%s\": expected true or false", key, values[0])
	}
}

// Time reads a point in time: RFC 3339 in any precision down to a date, a unix
// time with or without a fraction, or a duration before now.
func Time(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && s != "0" {
		return now.Add(-d), nil
	}
	layouts := []string{
		time.RFC3339Nano, "2006-01-02T15:04Z07:00",
		"2006-01-02T15:04:05.999999999", "2006-01-02T15:04",
		"2006-01-02 15:04:05.999999999", "2006-01-02Z07:00", "2006-01-02",
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	if t, ok := unixTime(s); ok {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("invalid time %q: expected 2006-01-02T15:04:05Z, a unix time, or a duration such as 42m", s)
}

var unixPattern = regexp.MustCompile(`^(\d{1,12})(?:\.(\d{1,9}))?$`)

func unixTime(s string) (time.Time, bool) {
	m := unixPattern.FindStringSubmatch(s)
	if m == nil {
		return time.Time{}, false
	}
	var sec, nsec int64
	for _, d := range m[1] {
		sec = sec*10 + int64(d-'0')
	}
	for _, d := range (m[2] + "000000000")[:9] {
		nsec = nsec*10 + int64(d-'0')
	}
	return time.Unix(sec, nsec), true
}
