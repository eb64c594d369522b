package shim

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/pod"
)

// stdio is where containerd wants a process's streams: paths of FIFOs, or for output the URI of a logger.
type stdio struct {
	stdin, stdout, stderr string
	terminal              bool
}

// patience is how long the end of a process waits for readers of its output.
const patience = 10 * time.Second

// open opens what there is. The second result keeps standard input open until it is closed, as clients come and
// go; nil: there is none. namespace and id are told to loggers.
func (s *stdio) open(namespace, id string) (_ pod.Streams, keeper *os.File, err error) {
	streams := pod.Streams{Patience: patience}
	defer func() {
		if err != nil {
			for _, f := range []*os.File{streams.Stdin, streams.Stdout, streams.Stderr, keeper} {
				if f != nil {
					f.Close()
				}
			}
			streams, keeper = pod.Streams{}, nil
		}
	}()
	if s.stdin != "" {
		// Without waiting for the other end.
		if streams.Stdin, err = openFIFO(s.stdin, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return streams, keeper, err
		}
		if keeper, err = openFIFO(s.stdin, unix.O_WRONLY|unix.O_NONBLOCK); err != nil {
			return streams, keeper, err
		}
	}
	scheme, _, isURI := strings.Cut(s.stdout, "://")
	if isURI && scheme == "binary" {
		streams.Stdout, streams.Stderr, err = startLogger(s.stdout, namespace, id)
		if s.terminal && streams.Stderr != nil {
			streams.Stderr.Close()
			streams.Stderr = nil
		}
		return streams, keeper, err
	}
	if streams.Stdout, err = openOutput(s.stdout); err != nil || s.terminal {
		return streams, keeper, err
	}
	streams.Stderr, err = openOutput(s.stderr)
	return streams, keeper, err
}

// openOutput opens what a process's output goes to; nil for nothing.
func openOutput(name string) (*os.File, error) {
	scheme, _, isURI := strings.Cut(name, "://")
	switch {
	case name == "":
		return nil, nil
	case !isURI:
		// For reading, too: readers come and go, and what was written shall wait for them.
		return openFIFO(name, unix.O_RDWR)
	case scheme == "fifo" || scheme == "file":
		u, err := url.Parse(name)
		if err != nil {
			return nil, fmt.Errorf("open the process's output: %w", err)
		}
		if scheme == "fifo" {
			return openFIFO(u.Path, unix.O_RDWR)
		}
		if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
			return nil, fmt.Errorf("open the process's output: %w", err)
		}
		f, err := os.OpenFile(u.Path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return nil, fmt.Errorf("open the process's output: %w", err)
		}
		return f, nil
	}
	return nil, fmt.Errorf("open the process's output: %s: there is no logger of the kind %s", name, scheme)
}

// openFIFO opens a FIFO as a descriptor that blocks.
func openFIFO(name string, flags int) (*os.File, error) {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, fmt.Errorf("open the process's stream: %w", &os.PathError{Op: "open", Path: name, Err: err})
	}
	return os.NewFile(uintptr(fd), name), nil
}

// loggerTime is how long a logger may take to be ready, and to end when all is read.
const loggerTime = 10 * time.Second

// startLogger starts the program of a URI binary:///PATH?KEY=VALUE, as containerd's package cio describes it: it
// reads the streams from its descriptors 3 and 4 and closes 5 when it is ready.
func startLogger(uri, namespace, id string) (stdout, stderr *os.File, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, nil, fmt.Errorf("start the logger: %w", err)
	}
	var args []string
	query := u.Query()
	for _, key := range slices.Sorted(func(yield func(string) bool) {
		for k := range query {
			if !yield(k) {
				return
			}
		}
	}) {
		args = append(args, key)
		if values := query[key]; len(values) > 0 && values[0] != "" {
			args = append(args, values[0])
		}
	}
	var pipes [3][2]*os.File
	defer func() {
		for i := range pipes {
			theirs, ours := 0, 1
			if i == 2 {
				theirs, ours = 1, 0
			}
			if pipes[i][theirs] != nil {
				pipes[i][theirs].Close()
			}
			if (err != nil || i == 2) && pipes[i][ours] != nil {
				pipes[i][ours].Close()
			}
		}
	}()
	for i := range pipes {
		if pipes[i][0], pipes[i][1], err = os.Pipe(); err != nil {
			return nil, nil, fmt.Errorf("start the logger: %w", err)
		}
	}
	cmd := exec.Command(u.Path, args...)
	cmd.Env = append(os.Environ(), "CONTAINER_ID="+id, "CONTAINER_NAMESPACE="+namespace)
	cmd.ExtraFiles = []*os.File{pipes[0][0], pipes[1][0], pipes[2][1]}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start the logger: %w", err)
	}
	go cmd.Wait()
	pipes[2][1].Close()
	pipes[2][1] = nil
	pipes[2][0].SetReadDeadline(time.Now().Add(loggerTime))
	if _, err := pipes[2][0].Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		cmd.Process.Kill()
		return nil, nil, fmt.Errorf("start the logger %s: it does not say that it is ready: %w", u.Path, err)
	}
	return pipes[0][1], pipes[1][1], nil
}
