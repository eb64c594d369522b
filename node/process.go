package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Version is one that is installed.
type Version struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	// Processes are the ids of those that are executed from it.
	Processes []int `json:"processes"`
}

// inode is what a program is told by, in whatever mount namespace it is.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// installed are the versions on the node, with the processes of each.
func (h *Host) installed(root *os.Root) ([]Version, error) {
	entries, err := fs.ReadDir(root.FS(), h.versions())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which versions there are: %w", err)
	}
	var list []Version
	of := map[inode]int{}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), newPrefix) {
			continue
		}
		for _, f := range files {
			var st unix.Stat_t
			if strings.HasPrefix(f.name, "bin/") && unix.Stat(h.inside(path.Join("/", h.versions(), e.Name(), f.name)), &st) == nil {
				of[inodeOf(&st)] = len(list)
			}
		}
		list = append(list, Version{Name: e.Name(), Current: e.Name() == h.inUse(root), Processes: []int{}})
	}
	proc := h.inside("/proc")
	processes, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("see which processes there are: %w", err)
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(proc, p.Name(), "exe"), &st); err != nil {
			// It has ended, or is the kernel's. Not to be allowed to see it is another thing: by its name it might be a pod's.
			if (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) && called(filepath.Join(proc, p.Name(), "comm")) {
				return nil, fmt.Errorf("see what process %d executes: %w (is the container privileged?)", pid, err)
			}
			continue
		}
		if i, ours := of[inodeOf(&st)]; ours {
			list[i].Processes = append(list[i].Processes, pid)
		}
	}
	return list, nil
}

// called reports whether a process has the name of one of our programs, of which the kernel keeps 15 bytes.
func called(comm string) bool {
	b, _ := os.ReadFile(comm)
	name := strings.TrimSpace(string(b))
	return name != "" && slices.ContainsFunc(files, func(f file) bool {
		own := path.Base(f.name)
		return path.Dir(f.name) == "bin" && own[:min(len(own), 15)] == name
	})
}

// prune removes versions that are not current and that nothing is executed from.
func (h *Host) prune(root *os.Root) error {
	list, err := h.installed(root)
	if err != nil {
		return err
	}
	for _, v := range list {
		if v.Current || len(v.Processes) > 0 {
			continue
		}
		// Without its name first: what is there under a version's name is complete.
		gone := path.Join(h.versions(), newPrefix+v.Name)
		root.RemoveAll(gone)
		err := root.Rename(path.Join(h.versions(), v.Name), gone)
		if err == nil {
			err = root.RemoveAll(gone)
		}
		if err != nil {
			return fmt.Errorf("remove version %s: %w", v.Name, err)
		}
		h.Log("removed %s, which no pod uses any more", v.Name)
	}
	// What a killed process has left.
	entries, _ := fs.ReadDir(root.FS(), h.versions())
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) {
			root.RemoveAll(path.Join(h.versions(), e.Name()))
		}
	}
	return nil
}

// busy is the number of processes that are executed from any version.
func (h *Host) busy(root *os.Root) (int, error) {
	list, err := h.installed(root)
	n := 0
	for _, v := range list {
		n += len(v.Processes)
	}
	return n, err
}
