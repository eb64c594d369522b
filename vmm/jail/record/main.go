// Command record prints the system calls that jailed programs make while a command runs, which is what the lists of allowed
// calls (vmm/qemu/calls) are made from and compared with:
//
//	record [-names 'qemu-system*,resumer,swtpm'] COMMAND [ARGUMENT...]
//
// It counts those of every process of the host that has one of the names, by the kernel's tracepoint raw_syscalls:sys_enter. So it changes
// nothing of the programs, sees also what a filter refuses, and needs root and a tracefs. On standard output is a line per name and call,
// with the number of times it was seen, at least, and with what an argument was where that matters (of ioctl(2) the request). It
// ends as the command does.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// telling are the calls whose argument of this index is part of what is recorded.
var telling = map[string]int{
	"ioctl": 1, "fcntl": 1, "prctl": 0, "arch_prctl": 0, "clone": 0, "socket": 0, "setsockopt": 2, "getsockopt": 2, "madvise": 2,
	"fallocate": 1, "seccomp": 0, "prlimit64": 1, "kill": 1, "tgkill": 2, "shmget": 2, "membarrier": 0,
}

// enough is how often a call is seen before the kernel is told not to report it any more.
const enough = 200

// maxValues bounds the values that are kept of an argument.
const maxValues = 64

func main() {
	names := flag.String("names", "qemu-system*,resumer,swtpm", "names of the processes, comma-separated; * stands for anything")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	r := &recorder{names: strings.Split(*names, ","), seen: map[string]map[int64]*call{}, over: map[string]map[int64]bool{}}
	code, err := r.run(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
	r.print()
	os.Exit(code)
}

// call is one call of the processes of one name.
type call struct {
	times  int
	values map[uint64]bool
}

type recorder struct {
	names []string
	// event is the tracepoint's directory.
	event string
	seen  map[string]map[int64]*call
	// over are for each of names the calls that are not reported any more.
	over map[string]map[int64]bool
}

// run records while the command runs, and returns its exit code.
func (r *recorder) run(command []string) (code int, err error) {
	at, err := os.MkdirTemp("", "record-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(at)
	if err := unix.Mount("tracefs", at, "tracefs", 0, ""); err != nil {
		return 0, fmt.Errorf("mount tracefs: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH)) }()
	instance := filepath.Join(at, "instances", fmt.Sprintf("record-%d", os.Getpid()))
	if err := os.Mkdir(instance, 0o700); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(instance)) }()
	r.event = filepath.Join(instance, "events/raw_syscalls/sys_enter")
	if err := os.WriteFile(filepath.Join(instance, "buffer_size_kb"), []byte("16384"), 0); err != nil {
		return 0, err
	}
	if err := r.choose(); err != nil {
		return 0, err
	}
	pipe, err := os.OpenFile(filepath.Join(instance, "trace_pipe"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(r.event+"/enable", []byte("1"), 0); err != nil {
		return 0, err
	}
	stop, wait := make(chan struct{}), sync.WaitGroup{}
	var failed error
	wait.Go(func() { failed = r.read(pipe, stop) })
	// Who ends this ends the command; what is recorded until then is printed, and nothing is left.
	ctx, end := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer end()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr
	ended := cmd.Run()
	err = os.WriteFile(r.event+"/enable", []byte("0"), 0)
	close(stop)
	wait.Wait()
	if err = errors.Join(err, failed, pipe.Close()); err != nil {
		return 0, err
	}
	var exit *exec.ExitError
	if ended != nil && ctx.Err() == nil && !errors.As(ended, &exit) {
		return 0, ended
	}
	return cmd.ProcessState.ExitCode(), nil
}

// choose tells the kernel what to report.
func (r *recorder) choose() error {
	var names []string
	for _, n := range r.names {
		one := fmt.Sprintf("(comm ~ %q", n)
		for _, id := range slices.Sorted(maps.Keys(r.over[n])) {
			one += fmt.Sprintf(" && id != %d", id)
		}
		names = append(names, one+")")
	}
	return os.WriteFile(r.event+"/filter", []byte(strings.Join(names, " || ")), 0)
}

// read reads reports until stop is closed and there is no more.
func (r *recorder) read(pipe *os.File, stop <-chan struct{}) error {
	lines := bufio.NewReader(pipeReader{int(pipe.Fd()), stop})
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil // the end
		}
		if r.note(line) {
			if err := r.choose(); err != nil {
				return err
			}
		}
	}
}

// pipeReader reads a trace until it is told to stop and there is no more.
type pipeReader struct {
	fd   int
	stop <-chan struct{}
}

func (p pipeReader) Read(b []byte) (int, error) {
	for {
		last := false
		select {
		case <-p.stop:
			last = true
		default:
		}
		n, err := unix.Read(p.fd, b)
		switch {
		case n > 0:
			return n, nil
		case err == unix.EAGAIN && !last:
			fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
			unix.Poll(fds, 200)
		case err == unix.EINTR:
		case err == nil:
			return 0, errors.New("end of trace")
		default:
			return 0, err
		}
	}
}

// note takes one line, as in
//
//	qemu-system-x86-123 [001] ..... 1.5: sys_enter: NR 16 (a, 5401, 0, 0, 0, 0)
//
// and reports whether there is something that need not be reported any more.
func (r *recorder) note(line string) bool {
	head, rest, ok := strings.Cut(line, " sys_enter: NR ")
	if !ok {
		return false
	}
	head, _, _ = strings.Cut(head, " [")
	head = strings.TrimSpace(head)
	name := head[:max(0, strings.LastIndexByte(head, '-'))]
	number, rest, _ := strings.Cut(rest, " (")
	id, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return false
	}
	if r.seen[name] == nil {
		r.seen[name] = map[int64]*call{}
	}
	c := r.seen[name][id]
	if c == nil {
		c = &call{values: map[uint64]bool{}}
		r.seen[name][id] = c
	}
	c.times++
	if at, ok := telling[nameOf(id)]; ok {
		args := strings.Split(strings.TrimRight(rest, ")\n"), ", ")
		if v, err := strconv.ParseUint(args[min(at, len(args)-1)], 16, 64); err == nil && len(c.values) < maxValues {
			c.values[v] = true
		}
		return false
	}
	for _, n := range r.names {
		if ok, _ := filepath.Match(n, name); ok && c.times >= enough && !r.over[n][id] {
			if r.over[n] == nil {
				r.over[n] = map[int64]bool{}
			}
			r.over[n][id] = true
			return true
		}
	}
	return false
}

func nameOf(id int64) string {
	if name, ok := arch.X86_64.SyscallNumbers[int(id)]; ok {
		return name
	}
	return strconv.FormatInt(id, 10)
}

func (r *recorder) print() {
	for _, name := range slices.Sorted(maps.Keys(r.seen)) {
		calls := r.seen[name]
		ids := slices.SortedFunc(maps.Keys(calls), func(a, b int64) int { return cmp.Compare(nameOf(a), nameOf(b)) })
		for _, id := range ids {
			var values []string
			for _, v := range slices.Sorted(maps.Keys(calls[id].values)) {
				values = append(values, fmt.Sprintf("%#x", v))
			}
			fmt.Printf("%s\t%s\t%d\t%s\n", name, nameOf(id), calls[id].times, strings.Join(values, " "))
		}
	}
}
