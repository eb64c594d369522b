// Package census counts what an installation of Manis holds of its host: processes,
// descriptors, memory files, sockets, mounts, control groups and files. Two counts, before and
// after, show what was left behind. It uses nothing of Manis but the names of its
// directories.
package census

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Installation is where an installation has its things.
type Installation struct {
	// Root and Run are what MANIS_ROOT and MANIS_RUN say.
	Root, Run string
	// Further directories are its own, such as the one for temporary files.
	Further []string
	// Names are parts of the names of control groups that are its own.
	Names []string
	// Daemon is the process whose descriptors are counted, or 0.
	Daemon int
}

// Census counts things by kind. Numbers that differ from one thing to the next of the same
// kind, such as those of processes, are not part of a kind.
type Census map[string]*Kind

// Kind is how many there are of a kind, and their full names.
type Kind struct {
	Count int
	Names []string
}

// Take counts everything.
func (i *Installation) Take() Census {
	c := make(Census)
	processes := i.Processes()
	memories := make(map[[2]uint64]bool)
	for pid, command := range processes {
		c.add("process", shortened(command), fmt.Sprintf("%d %s", pid, command))
		for fd, target := range descriptors(pid) {
			if pid == i.Daemon {
				c.add("descriptor of the daemon", general(target), fd+" "+target)
			}
			if name, ok := strings.CutPrefix(target, "/memfd:"); ok {
				var st syscall.Stat_t
				if syscall.Stat(fd, &st) == nil && !memories[[2]uint64{st.Dev, st.Ino}] {
					memories[[2]uint64{st.Dev, st.Ino}] = true
					c.add("memory file", general(name), fd+" "+target)
				}
			}
		}
	}
	for _, pid := range zombies(processes) {
		c.add("zombie", "", strconv.Itoa(pid))
	}
	dirs := append([]string{i.Root, i.Run}, i.Further...)
	for _, dir := range dirs {
		c.addFiles(dir)
	}
	c.addLines("socket", "/proc/net/unix", dirs)
	c.addLines("mount", "/proc/self/mounts", dirs)
	c.addGroups(i.Names)
	return c
}

func (c Census) add(kind, of, name string) {
	key := strings.TrimSpace(kind + " " + of)
	if c[key] == nil {
		c[key] = new(Kind)
	}
	c[key].Count++
	c[key].Names = append(c[key].Names, name)
}

func (c Census) addFiles(dir string) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			c.add("file", filepath.Join(filepath.Base(dir), general(strings.TrimPrefix(path, dir))), path)
		}
		return nil
	})
}

// addLines counts the lines of a file of the kernel's that name something below a directory.
func (c Census) addLines(kind, path string, dirs []string) {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		for _, field := range strings.Fields(line) {
			if i := slices.IndexFunc(dirs, func(dir string) bool { return field == dir || strings.HasPrefix(field, dir+"/") }); i >= 0 {
				c.add(kind, filepath.Join(filepath.Base(dirs[i]), general(strings.TrimPrefix(field, dirs[i]))), strings.TrimSpace(line))
				break
			}
		}
	}
}

func (c Census) addGroups(names []string) {
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && slices.ContainsFunc(names, func(n string) bool { return strings.Contains(d.Name(), n) }) {
			c.add("control group", "", path)
		}
		return nil
	})
}

// More says of each kind of which there is more than there was before how many, and names
// some of those that are there now.
func (c Census) More(before Census) []string {
	const shown = 5
	var list []string
	for kind, now := range c {
		was := 0
		if b := before[kind]; b != nil {
			was = b.Count
		}
		if now.Count <= was {
			continue
		}
		names := slices.Sorted(slices.Values(now.Names))
		if b := before[kind]; b != nil {
			names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(b.Names, n) })
		}
		more := ""
		if len(names) > shown {
			names, more = names[:shown], ", ..."
		}
		list = append(list, fmt.Sprintf("%s: %d, was %d: %s%s", kind, now.Count, was, strings.Join(names, ", "), more))
	}
	slices.Sort(list)
	return list
}

var numbers = regexp.MustCompile(`[0-9a-f]{8,}|[0-9]+`)

// general is a name without what tells it from others of its kind.
func general(name string) string { return numbers.ReplaceAllString(name, "#") }

// shortened is the beginning of a command: its program, and the verb if it has one.
func shortened(command string) string {
	words := strings.Fields(command)
	if len(words) == 0 {
		return ""
	}
	short := filepath.Base(words[0])
	if len(words) > 1 && !strings.ContainsAny(words[1], "-/{") {
		short += " " + words[1]
	}
	return general(short)
}

// Processes are the installation's own, with their commands, but for the caller. Front ends and
// monitors carry MANIS_ROOT in their environment; QEMU carries nothing, but has files of the
// installation open, and so has any process that was forgotten by its parent.
func (i *Installation) Processes() map[int]string {
	found := make(map[int]string)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || Zombie(pid) {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if bytes.Contains(env, []byte("MANIS_ROOT="+i.Root+"\x00")) || i.holds(pid) {
			cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			found[pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
		}
	}
	return found
}

// holds reports whether a process has a file of the installation open.
func (i *Installation) holds(pid int) bool {
	for _, target := range descriptors(pid) {
		if strings.HasPrefix(target, i.Root+"/") || strings.HasPrefix(target, i.Run+"/") {
			return true
		}
	}
	return false
}

// descriptors are what a process has open, by their paths in /proc.
func descriptors(pid int) map[string]string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	found := make(map[string]string, len(entries))
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err == nil {
			found[path] = target
		}
	}
	return found
}

// Zombie reports whether a process has ended and its parent has not asked how.
func Zombie(pid int) bool {
	state, _ := stat(pid)
	return state == "Z"
}

// stat returns a process's state and parent.
func stat(pid int) (state string, parent int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(text, ')') // the name may hold anything
	if i < 0 {
		return "", 0
	}
	fmt.Sscan(string(text[i+1:]), &state, &parent)
	return state, parent
}

// zombies are ended children of processes.
func zombies(of map[int]string) []int {
	var list []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if state, parent := stat(pid); state == "Z" && of[parent] != "" {
			list = append(list, pid)
		}
	}
	return list
}
