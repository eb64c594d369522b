package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// store is the directory of containers that --root names.
type store struct{ root string }

// state is what is remembered of a container between commands.
type state struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Owner       string            `json:"owner"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Hooks       *specs.Hooks      `json:"hooks,omitempty"`
	Terminal    bool              `json:"terminal,omitempty"`
	// PID is the process that stands for the container's first one, Birth when it began, in
	// clock ticks since the boot.
	PID   int    `json:"pid"`
	Birth uint64 `json:"birth"`
	// Pod is the directory of the pod.
	Pod string `json:"pod"`
	// Group is the control group of what the container has on the host.
	Group string `json:"cgroup,omitempty"`
}

// Errors by which callers know what is meant; the texts are runc's.
var (
	errNotExist = errors.New("container does not exist")
	errExist    = errors.New("container with given ID already exists")
)

var validID = regexp.MustCompile(`^[\w+.-]+$`)

// maxID is what a file's name may have.
const maxID = 255

func checkID(id string) error {
	switch {
	case id == "":
		return errors.New("container id cannot be empty")
	case len(id) > maxID:
		return fmt.Errorf("invalid container ID: it has %d characters, at most %d are possible", len(id), maxID)
	case !validID.MatchString(id), id == ".", id == "..":
		return fmt.Errorf("invalid container ID format: %q (letters, digits, '_', '+', '-' and '.' are possible)", id)
	}
	return nil
}

func (s *store) dir(id string) string  { return filepath.Join(s.root, id) }
func (s *store) file(id string) string { return filepath.Join(s.root, id, "state.json") }

// claim makes the directory of a new container.
func (s *store) claim(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := os.MkdirAll(s.root, 0o711); err != nil {
		return fmt.Errorf("make the directory of containers: %w", err)
	}
	err := os.Mkdir(s.dir(id), 0o711)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %s", errExist, id)
	}
	if err != nil {
		return fmt.Errorf("make the container's directory: %w", err)
	}
	return nil
}

func (s *store) save(st *state) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := writeFile(s.file(st.ID), b, 0o600); err != nil {
		return fmt.Errorf("write the container's state: %w", err)
	}
	return nil
}

// maxState bounds a state file, bytes.
const maxState = 4 << 20

func (s *store) load(id string) (*state, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.file(id), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", errNotExist, id)
	}
	if err != nil {
		return nil, fmt.Errorf("read the container's state: %w", err)
	}
	defer f.Close()
	return decodeState(f, id)
}

func decodeState(f *os.File, id string) (*state, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the container's state: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxState {
		return nil, fmt.Errorf("read the state of container %s: it is no file of at most %d bytes", id, maxState)
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read the container's state: %w", err)
	}
	return parseState(b, id)
}

// parseState takes what a state file holds.
func parseState(b []byte, id string) (*state, error) {
	st := new(state)
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("the state of container %s is damaged (delete --force removes it): %w", id, err)
	}
	if st.ID != id || st.PID < 0 || !filepath.IsAbs(st.Pod) {
		return nil, fmt.Errorf("the state of container %s is damaged (delete --force removes it)", id)
	}
	return st, nil
}

// remove deletes what is left of a container.
func (s *store) remove(id string) error {
	if err := os.RemoveAll(s.dir(id)); err != nil {
		return fmt.Errorf("remove the container's directory: %w", err)
	}
	return nil
}

// all are the states that can be read, by id.
func (s *store) all() ([]*state, error) {
	entries, err := os.ReadDir(s.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var list []*state
	for _, e := range entries {
		if st, err := s.load(e.Name()); err == nil {
			list = append(list, st)
		}
	}
	slices.SortFunc(list, func(a, b *state) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// alive reports whether the process that stands for the container's is there.
func (st *state) alive() bool {
	if st.PID == 0 {
		return false
	}
	birth, err := birthOf(st.PID)
	return err == nil && birth == st.Birth
}

// birthOf is when a process that has not ended began (proc(5), stat, field 22).
func birthOf(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, errors.New("unknown format of /proc/PID/stat")
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// specState is the state as the specification and hooks have it.
func (st *state) specState(status specs.ContainerState) *specs.State {
	s := &specs.State{Version: st.Version, ID: st.ID, Status: status, Pid: st.PID, Bundle: st.Bundle, Annotations: st.Annotations}
	if status == specs.StateStopped {
		s.Pid = 0
	}
	return s
}
