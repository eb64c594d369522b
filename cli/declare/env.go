package declare

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxFileBytes bounds files of variables and labels.
const maxFileBytes = 16 << 20

// environment merges the image's variables with the user's: files first, then
// flags, each replacing what was there before. A name without a value takes the
// value of this process, and removes the variable if there is none.
func (f *Flags) environment(image []string, h Host) ([]string, error) {
	lines, err := readLines(f.envFiles, "variable")
	if err != nil {
		return nil, err
	}
	env := newEnv()
	env.set(defaultPath)
	for _, e := range image {
		if strings.Contains(e, "=") {
			env.set(e)
		}
	}
	if err := env.addUsers(append(lines, f.env...), h.Getenv); err != nil {
		return nil, err
	}
	return env.list, nil
}

// ExecEnv reads the -e and --env-file flags of exec.
func ExecEnv(files, flags []string, getenv func(string) (string, bool)) ([]string, error) {
	lines, err := readLines(files, "variable")
	if err != nil {
		return nil, err
	}
	env := newEnv()
	if err := env.addUsers(append(lines, flags...), getenv); err != nil {
		return nil, err
	}
	return env.list, nil
}

// env is a list of variables without duplicates, in order of first mention.
type env struct {
	list  []string
	index map[string]int
}

func newEnv() *env { return &env{index: make(map[string]int)} }

func (e *env) set(pair string) {
	name, _, _ := strings.Cut(pair, "=")
	if i, ok := e.index[name]; ok {
		e.list[i] = pair
		return
	}
	e.index[name] = len(e.list)
	e.list = append(e.list, pair)
}

func (e *env) unset(name string) {
	i, ok := e.index[name]
	if !ok {
		return
	}
	e.list = append(e.list[:i], e.list[i+1:]...)
	delete(e.index, name)
	for n, j := range e.index {
		if j > i {
			e.index[n] = j - 1
		}
	}
}

func (e *env) addUsers(pairs []string, getenv func(string) (string, bool)) error {
	for _, pair := range pairs {
		name, _, given := strings.Cut(pair, "=")
		if name == "" || strings.ContainsRune(pair, 0) {
			return fmt.Errorf("invalid environment variable: %q", pair)
		}
		if given {
			e.set(pair)
			continue
		}
		if value, ok := getenv(name); ok {
			e.set(name + "=" + value)
		} else {
			e.unset(name)
		}
	}
	return nil
}

// readLines reads files of KEY or KEY=VALUE lines; what names the things in
// errors. Empty lines and those that begin with # are left out.
func readLines(files []string, what string) ([]string, error) {
	var lines []string
	for _, name := range files {
		fi, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		if fi.Size() > maxFileBytes {
			return nil, fmt.Errorf("%s: larger than %d bytes, which is no file of %ss", name, maxFileBytes, what)
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		found, err := parseLines(content, what)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		lines = append(lines, found...)
	}
	return lines, nil
}

func parseLines(content []byte, what string) ([]string, error) {
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(content) {
		return nil, fmt.Errorf("the file is not valid UTF-8")
	}
	var lines []string
	scanner := bufio.NewScanner(bytes.NewReader(content))
	scanner.Buffer(nil, maxFileBytes+1)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimLeftFunc(scanner.Text(), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, given := strings.Cut(line, "=")
		if !given {
			// A name alone: what follows it is not part of a value.
			name = strings.TrimRightFunc(name, unicode.IsSpace)
			line = name
		}
		if name == "" {
			return nil, fmt.Errorf("line %d: no %s name on line %q", n, what, line)
		}
		if strings.ContainsFunc(name, unicode.IsSpace) {
			return nil, fmt.Errorf("line %d: %s %q contains whitespaces", n, what, name)
		}
		lines = append(lines, line)
	}
	return lines, scanner.Err()
}
