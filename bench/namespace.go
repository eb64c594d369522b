package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"manis/network/netns"
	"manis/test/debimage"
)

const (
	// streamTime is how long each direction of a stream is measured, s.
	streamTime = 3
	// turns are the requests of one byte that are answered one after the other.
	turns = 2000
	// echoPort is where the probe answers, iperfPort where iperf3 does.
	echoPort, iperfPort = 9010, 5201
)

// The addresses of a namespace's network: of the world outside, of the container, and the one from which Manis has
// processes of the namespace itself come.
const insideAddress, outsideAddress = "10.77.0.2", "10.77.0.1"

// namespace measures containers whose network an engine would have made: a namespace with a veth, from which the world
// outside is reached. What Manis gets at best is measured against a process at the other end of the machine's own tap.
func (b *bench) namespace(ctx context.Context) error {
	const section = "namespace"
	if os.Geteuid() != 0 {
		b.skip(section, "all", errors.New("needs root, for network namespaces"))
		return nil
	}
	rootfs, err := networkTools(ctx, b)
	if err != nil {
		b.skip(section, "all", err)
		return ctx.Err()
	}
	var subjects []subject
	for _, s := range b.subjects {
		if o, ok := s.(*oci); ok {
			peer := *o
			peer.rootfs = rootfs
			peer.flags = slices.DeleteFunc(slices.Clone(o.flags), func(f string) bool { return f == "--network=none" })
			subjects = append(subjects, &peer)
		}
	}
	if m := b.manis; m != nil {
		env := m.env[len(m.env)-2:] // those of newManis
		o := &oci{label: "manis", binary: m.binary, rootfs: rootfs, dir: b.w.bundles, flags: []string{"--root", filepath.Join(b.w.dir, "state-manis")}}
		o.prefix = append([]string{"env"}, env...)
		best := *o
		best.label = atBest
		subjects = append(subjects, o, &best)
		// The first start builds a template, the second has a machine saved that was exercised.
		e := &engine{ctx: ctx}
		for range warmups {
			if err := b.inNamespace(ctx, o, func(*os.File) error { return nil }); err != nil {
				b.skip(section, o.label, err)
				return ctx.Err()
			}
			e.await()
		}
	}
	return b.inTurn(ctx, section, subjects, max(1, b.rounds/3), func(ctx context.Context, s subject) error {
		return b.inNamespace(ctx, s.(*oci), func(from *os.File) error {
			for _, d := range []struct {
				metric string
				flags  []string
			}{{"to the container", nil}, {"from the container", []string{"-R"}}} {
				rate, err := stream(ctx, from, rootfs, d.flags...)
				for again := 0; err != nil && again < 5; again++ {
					// The server does not listen for a moment after each measurement.
					if e := pause(ctx, 200*time.Millisecond); e != nil {
						return e
					}
					rate, err = stream(ctx, from, rootfs, d.flags...)
				}
				if err != nil {
					return fmt.Errorf("iperf3 %s: %w", d.metric, err)
				}
				b.add(section, d.metric, s.name(), "Mbit/s", true, rate)
			}
			rate, err := requests(from)
			if err != nil {
				return err
			}
			b.add(section, "requests", s.name(), "per s", true, rate)
			return nil
		})
	})
}

// atBest is Manis with nothing but the tap between the machine and the other end.
const atBest = "manis, at best"

// networkTools is a root filesystem with iperf3 from Debian and the probe.
func networkTools(ctx context.Context, b *bench) (string, error) {
	builder, err := debimage.New(b.log)
	if err != nil {
		return "", err
	}
	img, err := builder.Build(ctx, debimage.Recipe{Name: "iperf3", Packages: []string{"iperf3"}})
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.w.dir, "iperf3-rootfs")
	if err := unpack(mutate.Extract(img), dir); err != nil {
		return "", err
	}
	// iperf3 on the host's side is this one as well, and wants random bytes.
	if err := unix.Mknod(filepath.Join(dir, "dev/urandom"), unix.S_IFCHR|0o444, int(unix.Mkdev(1, 9))); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("make dev/urandom in %s: %w", dir, err)
	}
	probe, err := os.Open(filepath.Join(b.w.rootfs, "usr/bin/probe"))
	if err != nil {
		return "", err
	}
	defer probe.Close()
	return dir, unpackFile(filepath.Join(dir, "usr/bin/probe"), probe, 0o755)
}

// inNamespace starts the servers in a container that has a namespace with an interface, and calls use with the
// namespace from which clients are to ask.
func (b *bench) inNamespace(ctx context.Context, o *oci, use func(from *os.File) error) error {
	outside, err := newNamespace()
	if err != nil {
		return err
	}
	defer outside.Close()
	box, err := newNamespace()
	if err != nil {
		return err
	}
	defer box.Close()
	from := outside
	path := func(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
	if o.label == atBest {
		// An interface that a program feeds, here none: what asks is in the namespace itself.
		from = box
		err = ip(box, "tuntap add eth0 mode tap")
	} else {
		err = ip(outside, "link add up0 type veth peer name eth0", "link set eth0 netns "+path(box),
			"addr add "+outsideAddress+"/24 dev up0", "link set up0 up")
	}
	err = errors.Join(err, ip(box, "link set lo up", "addr add "+insideAddress+"/24 dev eth0", "link set eth0 up", "route add default via "+outsideAddress))
	if err != nil {
		return err
	}
	// iperf3 takes a connection of whoever only looks for it for a client, so the container looks whether it listens.
	script := fmt.Sprintf("TMPDIR=/dev/shm iperf3 -s >/dev/null 2>&1 & until grep -q :%X /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done; exec probe echo %d", iperfPort, echoPort)
	return running(ctx, o, task{args: []string{"sh", "-c", script}, netns: path(box)}, func(*exec.Cmd) error { return use(from) })
}

// newNamespace makes a network namespace that ends with its file.
func newNamespace() (f *os.File, err error) {
	made := make(chan struct{})
	go func() {
		defer close(made)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
	}()
	<-made
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return f, nil
}

// ip executes ip(8) in a namespace, once for each line.
func ip(ns *os.File, lines ...string) error {
	return netns.Do(ns, func() error {
		for _, line := range lines {
			if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", line, err, bytes.TrimSpace(out))
			}
		}
		return nil
	})
}

func dial(ns *os.File, port int) (c net.Conn, err error) {
	err = netns.Do(ns, func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(insideAddress, fmt.Sprint(port)), 5*time.Second)
		return err
	})
	return c, err
}

// stream has iperf3 of the root filesystem measure one connection, and returns what has arrived, Mbit/s.
func stream(ctx context.Context, ns *os.File, rootfs string, flags ...string) (rate float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var out bytes.Buffer
	err = netns.Do(ns, func() error {
		cmd := exec.CommandContext(ctx, "/usr/bin/iperf3", append([]string{"-c", insideAddress, "-t", fmt.Sprint(streamTime), "-J"}, flags...)...)
		cmd.Stdout, cmd.Dir = &out, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: rootfs}
		return cmd.Run()
	})
	var said struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if e := json.Unmarshal(out.Bytes(), &said); e != nil {
		return 0, fmt.Errorf("%w: %.200s", errors.Join(err, e), out.Bytes())
	}
	if said.Error != "" {
		err = errors.New(said.Error)
	}
	if err == nil && said.End.Received.Rate <= 0 {
		err = errors.New("nothing has arrived")
	}
	if err != nil {
		return 0, err
	}
	return said.End.Received.Rate / 1e6, nil
}

// requests sends bytes one after the other, each when the one before has come back, and returns how many in a second.
func requests(ns *os.File) (float64, error) {
	c, err := dial(ns, echoPort)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(answerTime))
	b := []byte{0}
	begin := time.Now()
	for range turns {
		if _, err := c.Write(b); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return 0, err
		}
	}
	return turns / time.Since(begin).Seconds(), nil
}
