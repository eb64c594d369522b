package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"manis/deploy/containerd"
)

// maxConfig bounds what is read of containerd's configuration, bytes.
const maxConfig = 1 << 20

// importMark ends a line of containerd's configuration that is ours, and begins a file that is.
const importMark = "# by manis-node, which takes it away again"

// dropIn is our part of containerd's configuration. modern: for 2.x.
func (h *Host) dropIn(modern bool) string {
	text := containerd.V1
	if modern {
		text = containerd.V2
	}
	shim := filepath.Join(h.Prefix, "current/bin/containerd-shim-manis-v2")
	text = strings.ReplaceAll(text, ".runtimes.manis", ".runtimes."+h.Handler)
	line := regexp.MustCompile(`(?m)^  # The program is .*\n(  runtime_type = .*\n)`)
	return line.ReplaceAllString(text, "$1  runtime_path = '"+shim+"'\n")
}

// configure writes the drop-in, and has containerd's configuration import it. It returns whether something has changed.
func (h *Host) configure(root *os.Root, modern bool) (changed bool, err error) {
	text := h.dropIn(modern)
	old, err := root.ReadFile(rel(h.DropIn))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read %s: %w", h.DropIn, err)
	}
	if string(old) != text {
		if err := replace(root, h.DropIn, text); err != nil {
			return false, err
		}
		h.Log("wrote %s", h.DropIn)
		changed = true
	}
	imported, err := h.importDropIn(root, modern)
	return changed || imported, err
}

// topImports finds the member imports before the first table.
var topImports = regexp.MustCompile(`(?m)^[ \t]*imports[ \t]*=[ \t]*(\[[^\]]*\])`)

// importDropIn adds an import where the configuration has none. One that others have written is left as it is: what they import may
// depend on the order.
func (h *Host) importDropIn(root *os.Root, modern bool) (changed bool, err error) {
	text, err := h.config(root)
	if errors.Is(err, fs.ErrNotExist) {
		version := 2
		if modern {
			version = 3
		}
		h.Log("wrote %s, as there was none", h.Config)
		return true, replace(root, h.Config, fmt.Sprintf("%s\nversion = %d\nimports = ['%s']\n", importMark, version, h.DropIn))
	}
	if err != nil {
		return false, err
	}
	head := text
	if i := regexp.MustCompile(`(?m)^[ \t]*\[`).FindStringIndex(text); i != nil {
		head = text[:i[0]]
	}
	if found := topImports.FindStringSubmatch(head); found != nil {
		for _, pattern := range regexp.MustCompile(`["']([^"']*)["']`).FindAllStringSubmatch(found[1], -1) {
			absolute := pattern[1]
			if !filepath.IsAbs(absolute) {
				absolute = filepath.Join(filepath.Dir(h.Config), absolute)
			}
			if ok, _ := filepath.Match(absolute, h.DropIn); ok {
				return false, nil
			}
		}
		return false, fmt.Errorf("%s imports other files only: add %q to its imports", h.Config, h.DropIn)
	}
	h.Log("%s now imports %s", h.Config, h.DropIn)
	return true, replace(root, h.Config, fmt.Sprintf("imports = ['%s'] %s\n%s", h.DropIn, importMark, text))
}

// unconfigure takes both away. It returns whether something was there.
func (h *Host) unconfigure(root *os.Root) (changed bool, err error) {
	switch err := root.Remove(rel(h.DropIn)); {
	case err == nil:
		changed = true
		h.Log("removed %s", h.DropIn)
		root.Remove(rel(path.Dir(h.DropIn))) // if nothing else is there
	case !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("remove containerd's drop-in: %w", err)
	}
	text, err := h.config(root)
	if errors.Is(err, fs.ErrNotExist) {
		return changed, nil
	}
	if err != nil {
		return changed, err
	}
	first, rest, _ := strings.Cut(text, "\n")
	switch {
	case first == importMark && strings.Count(rest, "\n") == 2:
		err = root.Remove(rel(h.Config))
	case first == importMark:
		// Somebody has gone on writing where we began.
		lines := strings.SplitAfter(rest, "\n")
		var kept strings.Builder
		for _, line := range lines {
			if line != fmt.Sprintf("imports = ['%s']\n", h.DropIn) {
				kept.WriteString(line)
			}
		}
		err = replace(root, h.Config, kept.String())
	case strings.HasSuffix(first, importMark):
		err = replace(root, h.Config, rest)
	default:
		return changed, nil
	}
	if err != nil {
		return changed, fmt.Errorf("take the import out of %s: %w", h.Config, err)
	}
	h.Log("%s is as it was", h.Config)
	return true, nil
}

func (h *Host) config(root *os.Root) (string, error) {
	fi, err := root.Stat(rel(h.Config))
	if err == nil && fi.Size() > maxConfig {
		err = fmt.Errorf("it is larger than %d bytes", maxConfig)
	}
	var b []byte
	if err == nil {
		b, err = root.ReadFile(rel(h.Config))
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", h.Config, err)
	}
	return string(b), nil
}

// replace writes a file in one step, with the mode that it had.
func replace(root *os.Root, name, text string) error {
	to := rel(name)
	mode := fs.FileMode(0o644)
	if fi, err := root.Stat(to); err == nil {
		mode = fi.Mode().Perm()
	}
	next := path.Join(path.Dir(to), "."+path.Base(to)+".new")
	root.Remove(next)
	err := root.MkdirAll(path.Dir(to), 0o755)
	var f *os.File
	if err == nil {
		f, err = root.OpenFile(next, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	}
	if err == nil {
		_, err = f.WriteString(text)
		if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
			err = root.Rename(next, to)
		}
		if err != nil {
			root.Remove(next)
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
