package debimage

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// source is where Debian's packages come from.
type source struct {
	Mirror string // URL without a trailing slash
	Suite  string // the release's code name
}

// defaultMirror is what Debian itself configures.
const defaultMirror = "http://deb.debian.org/debian"

// findSource takes the machine's own mirror and release, so that a build uses what its
// owner configured and what is near.
func findSource() (source, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return source{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	id, codename := osRelease(string(release))
	if id != "debian" || codename == "" {
		return source{Mirror: defaultMirror, Suite: "stable"}, nil
	}
	files := []string{"/etc/apt/sources.list"}
	for _, pattern := range []string{"/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		found, _ := filepath.Glob(pattern)
		files = append(files, found...)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		parse := parseList
		if strings.HasSuffix(file, ".sources") {
			parse = parseDeb822
		}
		if mirror := parse(string(content), codename); mirror != "" {
			return source{Mirror: strings.TrimRight(mirror, "/"), Suite: codename}, nil
		}
	}
	return source{Mirror: defaultMirror, Suite: codename}, nil
}

// osRelease returns ID and VERSION_CODENAME of an os-release(5) file.
func osRelease(content string) (id, codename string) {
	for line := range strings.Lines(content) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			id = value
		case "VERSION_CODENAME":
			codename = value
		}
	}
	return id, codename
}

// parseList returns the first mirror of the suite's main component in the one-line format of
// sources.list(5), "" if there is none.
func parseList(content, suite string) string {
	for line := range strings.Lines(content) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "deb" {
			continue
		}
		fields = fields[1:]
		// Options stand in brackets, with or without spaces inside.
		if len(fields) > 0 && strings.HasPrefix(fields[0], "[") {
			end := slices.IndexFunc(fields, func(f string) bool { return strings.HasSuffix(f, "]") })
			if end < 0 {
				continue
			}
			fields = fields[end+1:]
		}
		if len(fields) >= 3 && usable(fields[0]) && fields[1] == suite && slices.Contains(fields[2:], "main") {
			return fields[0]
		}
	}
	return ""
}

// parseDeb822 does the same for the stanzas of a .sources file.
func parseDeb822(content, suite string) string {
	for _, stanza := range stanzas(content) {
		if strings.EqualFold(strings.Join(stanza["enabled"], ""), "no") ||
			!slices.Contains(stanza["types"], "deb") ||
			!slices.Contains(stanza["suites"], suite) ||
			!slices.Contains(stanza["components"], "main") {
			continue
		}
		if i := slices.IndexFunc(stanza["uris"], usable); i >= 0 {
			return stanza["uris"][i]
		}
	}
	return ""
}

// stanzas splits a deb822 file into stanzas, each from field name in lower case to its words.
func stanzas(content string) []map[string][]string {
	var all []map[string][]string
	current, field := map[string][]string{}, ""
	flush := func() {
		if len(current) > 0 {
			all = append(all, current)
		}
		current, field = map[string][]string{}, ""
	}
	lines := bufio.NewScanner(strings.NewReader(content))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			current[field] = append(current[field], strings.Fields(line)...)
		default:
			name, value, _ := strings.Cut(line, ":")
			field = strings.ToLower(strings.TrimSpace(name))
			current[field] = append(current[field], strings.Fields(value)...)
		}
	}
	flush()
	return all
}

// usable says whether debootstrap can fetch from this URL.
func usable(uri string) bool {
	for _, scheme := range []string{"http://", "https://", "file:/"} {
		if strings.HasPrefix(uri, scheme) {
			return true
		}
	}
	return false
}
