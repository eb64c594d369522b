package policy

import (
	"fmt"
	"path"
	"strings"
)

// Pattern matches references of images: by repository in full (docker.io/library/alpine), and with a tag or digest
// in it by these, too. In it * stands for anything within a part between slashes, and ** alone for any number of
// parts.
type Pattern string

const maxPattern = 512 // bytes

// split takes the tag or digest off. Of a reference, too.
func (p Pattern) split() (repository, version string) {
	s := string(p)
	if i := strings.IndexByte(s, '@'); i >= 0 {
		return s[:i], s[i:]
	}
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') && i >= 0 {
		// A registry with a port and nothing else is none that images have.
		return s[:i], s[i:]
	}
	return s, ""
}

func (p Pattern) check() error {
	if len(p) > maxPattern {
		return fmt.Errorf("a pattern of more than %d bytes", maxPattern)
	}
	repository, version := p.split()
	parts := strings.Split(repository, "/")
	for _, part := range append(parts, version) {
		if strings.ContainsAny(part, "?[]\\ \t") || part == "" && version != part || part != "**" && strings.Contains(part, "**") {
			return fmt.Errorf("%q is not a pattern of references (* stands for anything within a part, ** for any number of parts)", string(p))
		}
	}
	if parts[0] != "**" && (len(parts) == 1 || !strings.ContainsAny(parts[0], ".:*") && parts[0] != "localhost") {
		return fmt.Errorf("%q does not say the registry: docker.io/library/%s, or **/%s for any", string(p), string(p), string(p))
	}
	return nil
}

// matches reports whether a full reference (registry/path:tag or registry/path@digest) matches.
func (p Pattern) matches(reference string) bool {
	repository, version := p.split()
	have, tag := Pattern(reference).split()
	if version != "" {
		if ok, err := path.Match(version, tag); err != nil || !ok {
			return false
		}
	}
	return match(strings.Split(repository, "/"), strings.Split(have, "/"))
}

// match compares parts. Only one ** is gone back to, the last: with it all the earlier ones have taken what they
// need.
func match(pattern, parts []string) bool {
	p, i := 0, 0
	star, from := -1, 0
	for i < len(parts) {
		if p < len(pattern) && pattern[p] == "**" {
			star, from = p, i
			p++
			continue
		}
		if p < len(pattern) {
			if ok, err := path.Match(pattern[p], parts[i]); err == nil && ok {
				p, i = p+1, i+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		p, i = star+1, from
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}
