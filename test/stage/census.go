package stage

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Process is one of the stage.
type Process struct {
	PID, Parent int
	Command     string
}

// Processes lists the stage's processes but for the first one, the test, and the dead.
func Processes() []Process {
	var list []Process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		stat, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		// The name of the program may hold anything.
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(f) < 2 || f[0] == "Z" || f[0] == "X" {
			continue
		}
		parent, _ := strconv.Atoi(f[1])
		command, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		list = append(list, Process{pid, parent, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))})
	}
	return list
}

// Machines lists the processes that are virtual machines.
func Machines() []Process {
	list := Processes()
	nobodys := rehearsals(list)
	return slices.DeleteFunc(list, func(p Process) bool {
		return nobodys[p.PID] || !strings.Contains(strings.SplitN(p.Command, " ", 2)[0], "qemu-system")
	})
}

// Census is what there is on the stage that a container could leave behind.
type Census []string

// rehearsals are the processes in which Manis prepares machines for later starts, and what they
// have started. They belong to no container and end by themselves.
func rehearsals(list []Process) map[int]bool {
	of := make(map[int]bool)
	for range 3 { // the process, its machine, and what that may have
		for _, p := range list {
			if strings.HasPrefix(p.Command, "manis rehearse ") || of[p.Parent] {
				of[p.PID] = true
			}
		}
	}
	return of
}

// Take counts processes, mounts, network interfaces and files below some directories, and
// the control groups whose names hold one of some words.
func Take(groups []string, dirs ...string) Census {
	var c Census
	list := Processes()
	nobodys := rehearsals(list)
	for _, p := range list {
		if nobodys[p.PID] {
			continue
		}
		c = append(c, fmt.Sprintf("process %s", general(p.Command)))
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		c = append(c, "mount "+strings.Fields(line)[1])
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		c = append(c, "interface "+l.Name)
	}
	for _, dir := range append(dirs, "/run", "/dev/shm") {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if path == "/run/mount" {
				return filepath.SkipDir // of mount(8), which makes it when it first needs it
			}
			if err == nil {
				c = append(c, "file "+path)
			}
			return nil
		})
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && slices.ContainsFunc(groups, func(w string) bool { return strings.Contains(path, w) }) {
			c = append(c, "control group "+path)
		}
		return nil
	})
	return c
}

var pids = regexp.MustCompile(`\b[0-9]+\b`)

// general is a command without what tells it from the next one of its kind.
func general(command string) string { return pids.ReplaceAllString(clip(command), "#") }

// More lists what is there now and was not there before.
func (c Census) More(before Census) []string {
	rest := slices.Clone(before)
	var more []string
	for _, now := range c {
		if i := slices.Index(rest, now); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
			continue
		}
		more = append(more, now)
	}
	return more
}

// Settled takes a census until there is nothing more than before, for as long as what ends by itself
// may take to do so, and returns what is still more then.
func Settled(before Census, take func() Census) []string {
	var more []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if more = take().More(before); len(more) == 0 {
			return nil
		}
	}
	return more
}
