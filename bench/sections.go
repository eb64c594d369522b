package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/term"
)

// sectionNames in the order in which they are measured and shown.
var sectionNames = []string{"start", "application", "engine", "burst", "density", "memory", "image", "files", "network", "namespace", "stdio"}

var titles = map[string]string{
	"start":       "Start of a container",
	"application": "A web server until its first answer",
	"engine":      "Under an engine",
	"burst":       "Many starts",
	"density":     "Idle containers side by side",
	"memory":      "Memory of an idle container",
	"image":       "Image",
	"files":       "File reads",
	"network":     "Network",
	"namespace":   "Network of an engine's",
	"stdio":       "Standard streams",
}

var about = map[string]string{
	"start":       "From the command's start to the first byte of the container's output, and to the command's end. Manis goes on from a template, boots a machine, or takes one out of the pool; the image is in the store. For runc, crun and runsc the root filesystem is unpacked beforehand and the container has no network.",
	"application": "A web server in Python, from the command's start to the first answered request: started in a container of its image, and, for Manis, also gone on from a snapshot of one that was ready. runc and crun share the host's network.",
	"engine":      "podman run --rm IMAGE true, from the command's start to its end, as root: with runc and with Manis as Podman's runtime, the same image, limits and networks. Manis goes on from an exercised machine, or has one that manisd keeps waiting.",
	"burst":       "Starts all at once, and starts one after the other: how long each took from its command's start to its end, how many ended in a second, and how many failed. Here the pool's daemon refills while containers start, as it does for users.",
	"density":     "Containers that do nothing, started from a template and running at the same time. Proportional set size of each one's QEMU and monitor, without and with what the guest has touched of its RAM, in percent of one processor what they compute.",
	"memory":      "Proportional set size of every process that a running container costs, not counting what the program in it uses by itself. The guest's memory is the part of its RAM that it has touched.",
	"image":       "From an OCI layout on disk to a store from which containers start: verify, merge layers, write EROFS and dm-verity.",
	"files":       "A file of the image, and the same from a host directory as a read-only volume. First: not in the container's own page cache (but in the host's); again: in it. Random reads are 4 KiB each.",
	"network":     "One TCP connection from a process on the host to a server in the container, through a port published on loopback. runc and crun bring no network: they share the host's, which is the upper bound.",
	"namespace":   "A container in a network namespace with a veth, as engines make one, and a process at the veth's other end: one TCP connection of iperf3 each way, and requests of one byte that are answered one after the other. At best: the same machine, asked by a process that is at the machine's tap itself, without a veth and without redirection.",
	"stdio":       "Bytes through the container's standard output and input, from the first to the last.",
}

// bench is one run of the benchmark.
type bench struct {
	*Report
	w        *workshop
	subjects []subject
	manis    *manis // nil when there is no binary
	phases   phases
	// contention is the function of that name, but in tests.
	contention func() float64
	rounds     int
	atOnce     int   // starts of a burst
	inARow     int   // starts one after the other
	idle       int   // containers side by side
	stdio      int64 // bytes
	network    int64 // bytes
	log        io.Writer
}

// interleaved measures every subject once per round.
func (b *bench) interleaved(ctx context.Context, section string, rounds int, measure func(context.Context, subject) error) error {
	return b.inTurn(ctx, section, b.subjects, rounds, measure)
}

// inTurn measures every one of the subjects once per round, beginning with another one
// each time, so that what else the machine does hits all alike.
func (b *bench) inTurn(ctx context.Context, section string, subjects []subject, rounds int, measure func(context.Context, subject) error) error {
	failed := make(map[string]bool)
	for round := range rounds {
		for i := range subjects {
			s := subjects[(i+round)%len(subjects)]
			if failed[s.name()] {
				continue
			}
			b.progress(fmt.Sprintf("%s, round %d of %d: %s", section, round+1, rounds, s.name()))
			if err := measure(ctx, s); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				failed[s.name()] = true
				b.skip(section, s.name(), err)
			}
		}
	}
	b.progress("")
	return nil
}

// forget drops what was measured of starts, so that they can be measured again.
func (b *bench) forget() {
	b.Series, b.Phases, b.Contention, b.phases = nil, nil, nil, phases{}
	b.Skipped = slices.DeleteFunc(b.Skipped, func(s Skip) bool { return s.Section == "start" })
}

// progress says on a terminal what is being done now.
func (b *bench) progress(what string) {
	if f, ok := b.log.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return
	}
	if what != "" {
		what = "bench: " + what
	}
	fmt.Fprint(b.log, "\r", what, "\x1b[K")
}

// started runs a task until its first byte of output, and gives it to use.
func started(ctx context.Context, s subject, t task, use func(cmd *exec.Cmd, out io.Reader, begin time.Time) error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd, done := s.command(ctx, t)
	defer done()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	err = use(cmd, out, begin)
	if err != nil {
		cancel()
	}
	// What is not read would keep the command from ending.
	io.Copy(io.Discard, out)
	if e := cmd.Wait(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("%w: %.300s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return nil
}

// running starts a task that does not end by itself, waits for its word, and ends
// it after use.
func running(ctx context.Context, s subject, t task, use func(cmd *exec.Cmd) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	finished := false
	err := started(ctx, s, t, func(cmd *exec.Cmd, out io.Reader, _ time.Time) error {
		var ready [6]byte
		if _, err := io.ReadFull(out, ready[:]); err != nil {
			return fmt.Errorf("wait for the container: %w", err)
		}
		if err := use(cmd); err != nil {
			return err
		}
		finished = true
		cancel()
		return nil
	})
	if finished {
		return nil
	}
	return err
}

func (b *bench) memory(ctx context.Context) error {
	return b.interleaved(ctx, "memory", max(1, b.rounds/3), func(ctx context.Context, s subject) error {
		return running(ctx, s, task{args: []string{"/usr/bin/probe", "idle"}}, func(cmd *exec.Cmd) error {
			members, err := s.members(ctx, cmd)
			if err != nil {
				return err
			}
			whole, guest := uint64(0), uint64(0)
			for role, pids := range members {
				private := uint64(0)
				for _, pid := range pids {
					all, ram, err := pss(pid)
					if err != nil {
						return err
					}
					private += all - ram
					guest += ram
				}
				if len(members) > 1 {
					b.add("memory", role, s.name(), "MB", false, mb(private))
				}
				whole += private
			}
			b.add("memory", "without guest memory", s.name(), "MB", false, mb(whole))
			if guest > 0 {
				b.add("memory", "guest memory touched", s.name(), "MB", false, mb(guest))
			}
			return nil
		})
	})
}

func (b *bench) files(ctx context.Context) error {
	const reads = 4000
	return b.interleaved(ctx, "files", max(1, b.rounds/3), func(ctx context.Context, s subject) error {
		for _, place := range []struct{ name, dir string }{{"image", "/data"}, {"volume", "/volume"}} {
			script := fmt.Sprintf("probe read %[1]s/sequential && probe read %[1]s/sequential && probe random %[1]s/random %[2]d", place.dir, reads)
			var lines []reading
			err := started(ctx, s, task{args: []string{"sh", "-c", script}, volume: b.w.volume}, func(_ *exec.Cmd, out io.Reader, _ time.Time) error {
				d := json.NewDecoder(out)
				for range 3 {
					var r reading
					if err := d.Decode(&r); err != nil {
						return fmt.Errorf("read the probe's numbers: %w", err)
					}
					lines = append(lines, r)
				}
				return nil
			})
			if err != nil {
				return err
			}
			for i, r := range lines[:2] {
				if r.Bytes != b.w.bytes {
					return fmt.Errorf("read %d bytes of the %s, want %d", r.Bytes, place.name, b.w.bytes)
				}
				b.add("files", place.name+", "+[]string{"first", "again"}[i], s.name(), "MB/s", true, mb(uint64(r.Bytes))/r.Seconds)
			}
			b.add("files", place.name+", random", s.name(), "reads/s", true, float64(lines[2].Operations)/lines[2].Seconds)
		}
		return nil
	})
}

// reading is what the probe prints.
type reading struct {
	Bytes, Operations int64
	Seconds           float64
}

func (b *bench) net(ctx context.Context) error {
	const port = 9009
	return b.interleaved(ctx, "network", max(1, b.rounds/3), func(ctx context.Context, s subject) error {
		t := task{args: []string{"/usr/bin/probe", "serve", fmt.Sprint(port)}, port: port}
		if _, err := s.address(ctx, t); err != nil {
			return err
		}
		return running(ctx, s, t, func(*exec.Cmd) error {
			address, err := s.address(ctx, t)
			if err != nil {
				return err
			}
			in, err := transfer(ctx, address, b.network, false)
			if err != nil {
				return fmt.Errorf("send to the container: %w", err)
			}
			out, err := transfer(ctx, address, b.network, true)
			if err != nil {
				return fmt.Errorf("receive from the container: %w", err)
			}
			b.add("network", "host to container", s.name(), "MB/s", true, in)
			b.add("network", "container to host", s.name(), "MB/s", true, out)
			return nil
		})
	})
}

// transfer moves n bytes one way and returns the speed in MB/s.
func transfer(ctx context.Context, address string, n int64, receive bool) (float64, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Minute))
	var head [8]byte
	begin := time.Now()
	if receive {
		binary.LittleEndian.PutUint64(head[:], uint64(n))
	}
	if _, err := conn.Write(head[:]); err != nil {
		return 0, err
	}
	got := int64(0)
	if receive {
		got, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 256<<10))
	} else {
		if err = flood(conn, n); err == nil {
			if err = conn.(*net.TCPConn).CloseWrite(); err == nil {
				_, err = io.ReadFull(conn, head[:])
			}
		}
		got = int64(binary.LittleEndian.Uint64(head[:]))
	}
	if err != nil {
		return 0, err
	}
	if got != n {
		return 0, fmt.Errorf("%d bytes arrived of %d", got, n)
	}
	return mb(uint64(n)) / time.Since(begin).Seconds(), nil
}

func flood(w io.Writer, n int64) error {
	buf := make([]byte, 256<<10)
	for n > 0 {
		m, err := w.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

func (b *bench) streams(ctx context.Context) error {
	return b.interleaved(ctx, "stdio", max(1, b.rounds/3), func(ctx context.Context, s subject) error {
		var speed float64
		err := started(ctx, s, task{args: []string{"/usr/bin/probe", "out", fmt.Sprint(b.stdio)}}, func(_ *exec.Cmd, out io.Reader, _ time.Time) error {
			buf := make([]byte, 256<<10)
			n, err := out.Read(buf)
			first := time.Now()
			if err != nil {
				return err
			}
			rest, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{out}, buf)
			if err != nil {
				return err
			}
			if total := rest + int64(n); total != b.stdio {
				return fmt.Errorf("%d bytes arrived of %d", total, b.stdio)
			}
			speed = mb(uint64(rest)) / time.Since(first).Seconds()
			return nil
		})
		if err != nil {
			return err
		}
		b.add("stdio", "output", s.name(), "MB/s", true, speed)
		if speed, err = b.input(ctx, s); err != nil {
			return err
		}
		b.add("stdio", "input", s.name(), "MB/s", true, speed)
		return nil
	})
}

// input measures the way into the container: from the first write that had to
// wait for it, when the pipe was full, to the container's count.
func (b *bench) input(ctx context.Context, s subject) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd, done := s.command(ctx, task{args: []string{"sh", "-c", "echo ready; exec probe in"}, stdin: true})
	defer done()
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	speed, err := func() (float64, error) {
		ready := make([]byte, 6)
		if _, err := io.ReadFull(out, ready); err != nil {
			return 0, fmt.Errorf("wait for the container: %w", err)
		}
		begin := time.Now()
		if err := errors.Join(flood(in, b.stdio), in.Close()); err != nil {
			return 0, err
		}
		var got int64
		if _, err := fmt.Fscan(out, &got); err != nil {
			return 0, fmt.Errorf("read the container's count: %w", err)
		}
		if got != b.stdio {
			return 0, fmt.Errorf("%d bytes arrived of %d", got, b.stdio)
		}
		return mb(uint64(got)) / time.Since(begin).Seconds(), nil
	}()
	if err != nil {
		cancel()
	}
	in.Close()
	if e := cmd.Wait(); err == nil {
		err = e
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %.300s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return speed, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func mb(n uint64) float64        { return float64(n) / 1e6 }
