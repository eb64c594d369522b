package jail

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Closure is what a dynamically linked program needs to be executed.
type Closure struct {
	// Program is the absolute path of the program, symbolic links resolved.
	Program string `json:"program"`
	// Interpreter is the dynamic loader's path as the program names it; empty for
	// a static program.
	Interpreter string `json:"interpreter"`
	// Libraries maps the name by which a library is asked for to its path.
	Libraries map[string]string `json:"libraries"`
	// Loads are the shared objects that the program opens by itself.
	Loads []string `json:"loads"`
}

// maxLibraries bounds a closure; QEMU with everything has about 150.
const maxLibraries = 1024

// defaultLibraryDirs are searched last, like the loader does; it has one of
// these compiled in, depending on the distribution.
var defaultLibraryDirs = []string{
	"/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu",
	"/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib", "/usr/lib", "/usr/local/lib",
}

// FindClosure reads the program, the shared objects in loads and, from
// these, every library that the dynamic loader would load, the way ld.so(8)
// finds them: RPATH or RUNPATH of the object, the loader's cache, default directories.
func FindClosure(program string, loads []string) (*Closure, error) {
	path, err := filepath.EvalSymlinks(program)
	if err != nil {
		return nil, fmt.Errorf("find program to jail: %w", err)
	}
	c := &Closure{Program: path, Loads: loads, Libraries: map[string]string{}}
	s := search{closure: c}
	main, err := readObject(path)
	if err != nil {
		return nil, fmt.Errorf("read program to jail: %w", err)
	}
	s.machine, s.class = main.machine, main.class
	c.Interpreter = main.interpreter
	if c.Interpreter == "" {
		return c, nil
	}
	if s.cache, err = readLoaderCache("/etc/ld.so.cache"); err != nil {
		return nil, fmt.Errorf("find libraries of %s: %w", path, err)
	}
	if err := s.add(main); err != nil {
		return nil, err
	}
	for _, load := range loads {
		o, err := readObject(load)
		if err != nil {
			return nil, fmt.Errorf("read module of %s: %w", path, err)
		}
		if err := s.add(o); err != nil {
			return nil, err
		}
	}
	return c, nil
}

type search struct {
	closure *Closure
	cache   loaderCache
	machine elf.Machine
	class   elf.Class
}

// add finds what o needs, and what that needs, breadth first.
func (s *search) add(o *object) error {
	queue := []*object{o}
	for len(queue) > 0 {
		o, queue = queue[0], queue[1:]
		for _, name := range o.needed {
			if _, ok := s.closure.Libraries[name]; ok || name == filepath.Base(s.closure.Interpreter) {
				continue
			}
			lib, err := s.find(name, o)
			if err != nil {
				return err
			}
			if len(s.closure.Libraries) == maxLibraries {
				return fmt.Errorf("%s needs more than %d libraries", s.closure.Program, maxLibraries)
			}
			s.closure.Libraries[name] = lib.path
			queue = append(queue, lib)
		}
	}
	return nil
}

func (s *search) find(name string, by *object) (*object, error) {
	var candidates []string
	if strings.Contains(name, "/") {
		candidates = []string{name}
	} else {
		for _, dir := range by.runpath {
			candidates = append(candidates, filepath.Join(dir, name))
		}
		candidates = append(candidates, s.cache[name]...)
		for _, dir := range defaultLibraryDirs {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	for _, path := range candidates {
		o, err := readObject(path)
		if err == nil && o.machine == s.machine && o.class == s.class {
			return o, nil
		}
	}
	return nil, fmt.Errorf("library %s, needed by %s, is not installed", name, by.path)
}

// object is what matters here of an ELF file.
type object struct {
	path        string
	machine     elf.Machine
	class       elf.Class
	interpreter string
	needed      []string
	runpath     []string
}

func readObject(path string) (*object, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	o := &object{path: path, machine: e.Machine, class: e.Class}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			o.interpreter = strings.TrimRight(string(b), "\x00")
		}
	}
	if o.needed, err = e.DynString(elf.DT_NEEDED); err != nil {
		if errors.Is(err, elf.ErrNoSymbols) {
			return o, nil
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	runpath, _ := e.DynString(elf.DT_RUNPATH)
	if len(runpath) == 0 {
		runpath, _ = e.DynString(elf.DT_RPATH)
	}
	for _, list := range runpath {
		for dir := range strings.SplitSeq(list, ":") {
			dir = strings.NewReplacer("${ORIGIN}", filepath.Dir(path), "$ORIGIN", filepath.Dir(path)).Replace(dir)
			if filepath.IsAbs(dir) && !slices.Contains(o.runpath, dir) {
				o.runpath = append(o.runpath, dir)
			}
		}
	}
	return o, nil
}
