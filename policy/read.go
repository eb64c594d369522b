package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// maxFile bounds the file and each key, bytes.
const maxFile = 1 << 20

// Variable names another file than the default, for one process and its children. That file has to be there.
const Variable = "MANIS_POLICY"

// Load reads the file that the environment names, or the one at path, where it is no error that there is none: then
// the policy is nil. Whatever else keeps it from being read is an error, and so is a file that others than root and
// this user may write.
func Load(path string) (*Policy, error) {
	named := os.Getenv(Variable)
	if named != "" {
		if !filepath.IsAbs(named) {
			return nil, fmt.Errorf("nothing is started until the policy can be read: %s is %q, which is not an absolute path", Variable, named)
		}
		path = named
	}
	text, err := read(path)
	if errors.Is(err, fs.ErrNotExist) && named == "" {
		// A link that leads nowhere was meant to be a policy.
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	var p *Policy
	if err == nil {
		p, err = Parse(path, text)
	}
	if err != nil {
		return nil, fmt.Errorf("nothing is started until the policy can be read: %w", err)
	}
	return p, nil
}

// read reads a file on which decisions rest.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Uid != 0 && int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0) {
		return nil, fmt.Errorf("%s can be changed by others than root and its user (it belongs to user %d and has mode %04o: it should be root's or yours, with mode 0644)",
			path, st.Uid, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return b, nil
}

// Parse reads the text of a policy whose file is at path; its errors name line and field. Files of keys are found
// beside it.
func Parse(path string, text []byte) (*Policy, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	var document, more yaml.Node
	if err := d.Decode(&document); err == io.EOF {
		return nil, fmt.Errorf("%s: it is empty: it needs version and profile", path)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(&more); err != io.EOF {
		return nil, fmt.Errorf("%s: it has more than one document", path)
	}
	p, err := newPolicy(path, document.Content[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}
