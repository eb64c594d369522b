// Package bundle turns a bundle of the OCI runtime-spec, a directory with a
// config.json, into what the host and the agent carry out: a request to create the
// container, the directories to export to the machine, and the machine's size. Its rule:
// what cannot hold in a virtual machine is an error that says so; what has no effect there
// without harm is a warning. It starts nothing and changes nothing; of the host
// it looks at the root filesystem, at sources of mounts, and at the number of CPUs. It must not
// know how the machine is run, which containers share one, or what the commands of a
// runtime are.
package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// configName is the file of a bundle (runtime-spec, "Filesystem Bundle").
const configName = "config.json"

// maxConfig bounds it, bytes.
const maxConfig = 16 << 20

// Bundle is a bundle as it was read. Nothing but its form is checked; Plan checks the rest.
type Bundle struct {
	// Dir is the absolute path of the bundle's directory.
	Dir string
	// Spec is its configuration, as it is in the file.
	Spec *specs.Spec

	// limits are those of the latest call of Resources.
	limits *specs.LinuxResources
}

// Load reads dir/config.json, a regular file of at most 16 MiB. A file that is not there is an
// error that errors.Is finds to be fs.ErrNotExist.
func Load(dir string) (*Bundle, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	name := filepath.Join(dir, configName)
	// A FIFO in its place would be waited for.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read bundle: %s is not a regular file", name)
	}
	config, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	return Parse(dir, config)
}

// Parse reads the text of a config.json whose bundle is dir. Members that it does not
// know are ignored, as the runtime-spec wants ("Extensibility").
func Parse(dir string, config []byte) (*Bundle, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	if len(config) > maxConfig {
		return nil, fmt.Errorf("%s: it has more than %d MiB", configName, maxConfig>>20)
	}
	s := new(specs.Spec)
	d := json.NewDecoder(bytes.NewReader(config))
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("%s: %w", configName, explain(config, err))
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: %s: there is text after the end of the JSON object", configName, position(config, d.InputOffset()))
	}
	if err := checkVersion(s.Version); err != nil {
		return nil, fmt.Errorf("%s: ociVersion: %w", configName, err)
	}
	return &Bundle{Dir: dir, Spec: s}, nil
}

// explain adds to an error of the decoder where in the text it is.
func explain(text []byte, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("it is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: it ends in the middle of the JSON object", position(text, int64(len(text))))
	case errors.As(err, &syntax):
		return fmt.Errorf("%s: %w", position(text, syntax.Offset), err)
	case errors.As(err, &kind):
		name := kind.Field
		if name == "" {
			name = "the whole"
		}
		return fmt.Errorf("%s: %s: must be a JSON value for %s, is a %s", position(text, kind.Offset), name, kind.Type, kind.Value)
	}
	return err
}

// position names the line and column, counted from 1, of the byte before offset.
func position(text []byte, offset int64) string {
	before := text[:max(0, min(offset, int64(len(text))))]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1)
	return fmt.Sprintf("line %d, column %d", line, max(1, column))
}

// checkVersion accepts every 1.x, whose configurations are compatible (SemVer 2.0, which the
// runtime-spec refers to).
func checkVersion(v string) error {
	if v == "" {
		return fmt.Errorf("is missing (%s is the newest that is known here)", specs.Version)
	}
	core, _, _ := strings.Cut(v, "+")
	core, _, _ = strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return fmt.Errorf("%.40q is not of the form MAJOR.MINOR.PATCH", v)
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 31); err != nil {
			return fmt.Errorf("%.40q is not of the form MAJOR.MINOR.PATCH", v)
		}
	}
	if parts[0] != strconv.Itoa(specs.VersionMajor) {
		return fmt.Errorf("version %.40s is not understood: only %d.x is", v, specs.VersionMajor)
	}
	return nil
}
