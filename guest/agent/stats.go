package agent

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// Stats measures a container.
func (s *service) Stats(ctx context.Context, r *api.ContainerRef) (*api.StatsResponse, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil, fail(codes.NotFound, fmt.Errorf("no such container: %s", r.Id))
	}
	reply := new(api.StatsResponse)
	g := c.cgroup
	for _, n := range []struct {
		file string
		to   *uint64
	}{
		{"memory.current", &reply.MemoryBytes},
		{"memory.max", &reply.MemoryLimitBytes},
		{"pids.current", &reply.Pids},
		{"pids.max", &reply.PidsLimit},
	} {
		if *n.to, err = g.number(n.file); err != nil {
			return nil, err
		}
		if *n.to == math.MaxUint64 {
			*n.to = 0
		}
	}
	if reply.MemoryLimitBytes == 0 {
		// The machine is the limit.
		reply.MemoryLimitBytes, _ = readNumber(containersCgroup + "/memory.max")
	}
	if reply.MemoryStat, err = g.stat("memory.stat"); err != nil {
		return nil, err
	}
	reply.MemoryCacheBytes = reply.MemoryStat["file"]
	cpu, err := g.stat("cpu.stat")
	if err != nil {
		return nil, err
	}
	reply.CpuUsageUs, reply.CpuUserUs, reply.CpuSystemUs = cpu["usage_usec"], cpu["user_usec"], cpu["system_usec"]
	if events, err := g.stat("memory.events"); err == nil {
		reply.OomKills = events["oom_kill"]
	}
	if b, err := g.read("io.stat"); err == nil {
		reply.ReadBytes, reply.WriteBytes = sumIO(string(b), virtioDisks())
	}
	if b, err := readFile("/proc/net/dev", 1<<20); err == nil {
		sumNetwork(string(b), reply)
	}
	return reply, nil
}

// virtioDisks returns the numbers of the machine's disks. What goes through a
// verity device is counted for it and for its disk, so only disks count.
func virtioDisks() map[string]bool {
	disks := make(map[string]bool)
	names, err := readDir("/sys/block")
	if err != nil {
		return disks
	}
	for _, n := range names {
		if strings.HasPrefix(n, "vd") {
			if b, err := readFile("/sys/block/"+n+"/dev", 64); err == nil {
				disks[trim(b)] = true
			}
		}
	}
	return disks
}

// sumIO adds up the lines of io.stat: "8:0 rbytes=1 wbytes=2 rios=...".
func sumIO(text string, disks map[string]bool) (read, written uint64) {
	for line := range strings.Lines(text) {
		device, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !disks[device] {
			continue
		}
		for f := range strings.FieldsSeq(rest) {
			key, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				read += n
			case "wbytes":
				written += n
			}
		}
	}
	return read, written
}

// sumNetwork adds up /proc/net/dev without the loopback: the network is the
// sandbox's.
func sumNetwork(text string, to *api.StatsResponse) {
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) == "lo" {
			continue
		}
		f := strings.Fields(rest)
		if len(f) < 10 {
			continue
		}
		for _, n := range []struct {
			i  int
			to *uint64
		}{{0, &to.RxBytes}, {1, &to.RxPackets}, {8, &to.TxBytes}, {9, &to.TxPackets}} {
			v, _ := strconv.ParseUint(f[n.i], 10, 64)
			*n.to += v
		}
	}
}

// maxProcesses bounds a listing.
const maxProcesses = 8192

// ticksPerSecond is USER_HZ, which Linux fixes on this architecture.
const ticksPerSecond = 100

// Processes lists a container's processes.
func (s *service) Processes(ctx context.Context, r *api.ContainerRef) (*api.ProcessesResponse, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed || c.first == nil || c.first.hasExited() {
		return nil, fail(codes.FailedPrecondition, fmt.Errorf("container %s is not running", r.Id))
	}
	var pids []int
	if err := listPids(c.cgroup.path, &pids, 0); err != nil {
		return nil, err
	}
	boot := bootTime()
	reply := new(api.ProcessesResponse)
	for _, pid := range pids {
		if p := describeProcess(pid, boot); p != nil {
			reply.Processes = append(reply.Processes, p)
		}
	}
	visit(c.mnt, func() error {
		passwd, err := userFile("/etc/passwd")
		if err != nil {
			return err
		}
		names := make(map[uint32]string)
		findUser(passwd, func(e passwdEntry) bool {
			if _, known := names[e.uid]; !known {
				names[e.uid] = e.name
			}
			return false
		})
		for _, p := range reply.Processes {
			p.User = names[p.Uid]
		}
		return nil
	})
	for _, p := range reply.Processes {
		if p.User == "" {
			p.User = strconv.FormatUint(uint64(p.Uid), 10)
		}
	}
	return reply, nil
}

// listPids collects the processes of a cgroup and of those below it.
func listPids(path string, pids *[]int, depth int) error {
	b, err := readFile(path+"/cgroup.procs", 1<<20)
	if err != nil {
		return err
	}
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 && len(*pids) < maxProcesses {
			*pids = append(*pids, pid)
		}
	}
	names, err := readDir(path)
	if err != nil || depth > 32 {
		return err
	}
	for _, n := range names {
		var st unix.Stat_t
		if unix.Lstat(path+"/"+n, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			// It may go away meanwhile.
			listPids(path+"/"+n, pids, depth+1)
		}
	}
	return nil
}

// bootTime is when the machine's clocks began, nanoseconds since the epoch.
func bootTime() int64 {
	var now, since unix.Timespec
	unix.ClockGettime(unix.CLOCK_REALTIME, &now)
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &since)
	return now.Nano() - since.Nano()
}

// describeProcess reads /proc; nil when the process is gone.
func describeProcess(pid int, boot int64) *api.ProcessInfo {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := readFile(dir+"/stat", 8192)
	if err != nil {
		return nil
	}
	p, ok := parseStat(string(stat), boot)
	if !ok {
		return nil
	}
	status, err := readFile(dir+"/status", 64<<10)
	if err != nil {
		return nil
	}
	parseStatus(string(status), p)
	// The parent is known by its number here; it is told by the one in there.
	if parent, err := readFile("/proc/"+strconv.Itoa(int(p.Ppid))+"/status", 64<<10); err == nil {
		of := new(api.ProcessInfo)
		if depth := parseStatus(string(parent), of); depth > 1 {
			p.Ppid = of.Pid
		} else {
			p.Ppid = 0
		}
	}
	if line, err := readStart(dir+"/cmdline", 32<<10); err == nil && len(line) > 0 {
		p.Command = strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(string(line), "?")))
	}
	return p
}

// readStart reads the beginning of a file.
func readStart(path string, limit int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, limit)
	n, err := unix.Read(fd, buf)
	return buf[:max(n, 0)], err
}

// parseStat reads /proc/PID/stat. The command, which a process chooses itself, may
// hold anything, also brackets: it ends at the last one.
func parseStat(text string, boot int64) (*api.ProcessInfo, bool) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return nil, false
	}
	f := strings.Fields(text[end+1:])
	if len(f) < 20 {
		return nil, false
	}
	number := func(i int) uint64 {
		n, _ := strconv.ParseUint(f[i-3], 10, 64) // numbered as in proc(5)
		return n
	}
	p := &api.ProcessInfo{
		Ppid:          uint32(number(4)),
		CpuMs:         (number(14) + number(15)) * (1000 / ticksPerSecond),
		StartedUnixNs: boot + int64(number(22))*(1e9/ticksPerSecond),
		Command:       "[" + strings.ToValidUTF8(text[open+1:end], "?") + "]",
		Tty:           ttyName(number(7)),
	}
	return p, true
}

// ttyName names a terminal as ps does.
func ttyName(number uint64) string {
	major, minor := unix.Major(number), unix.Minor(number)
	switch {
	case number == 0:
		return "?"
	case major >= 136 && major <= 143:
		return "pts/" + strconv.Itoa(int(major-136)<<8|int(minor))
	}
	return "?"
}

// parseStatus reads user and process id from /proc/PID/status, and returns how many
// PID namespaces deep the process is.
func parseStatus(text string, p *api.ProcessInfo) int {
	depth := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		switch {
		case key == "Uid" && len(f) > 1:
			n, _ := strconv.ParseUint(f[1], 10, 32)
			p.Uid = uint32(n)
		case key == "NSpid" && len(f) > 0:
			n, _ := strconv.ParseUint(f[len(f)-1], 10, 32)
			p.Pid = uint32(n)
			depth = len(f)
		}
	}
	return depth
}
