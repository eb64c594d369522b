// Command bench measures Manis beside runc, crun and gVisor's runsc on the same
// machine, in the same run, with the same root filesystem: how fast a
// container starts, what it costs in memory, and how fast files, network and
// streams are. It prints a table and writes a page with charts and the raw
// numbers. It uses Manis only as a user does: through its command line.
//
//	go run ./bench -rounds 5 -only start,memory
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench", flag.ExitOnError)
	rounds := fs.Int("rounds", 10, "`number` of starts of each runtime; the other sections take a third of it")
	only := fs.String("only", strings.Join(sectionNames, ","), "`sections` to measure, by comma")
	out := fs.String("out", filepath.Join(top(), "bench", "results"), "`directory` for the numbers and the page")
	binary := fs.String("manis", filepath.Join(top(), "bin", "manis"), "`path` of the binary to measure")
	accel := fs.String("accel", "auto", "acceleration of Manis: auto, kvm or tcg")
	skip := fs.String("skip", "", "`runtimes` to leave out, by comma")
	mib := fs.Int64("data", 64, "`MiB` of each data file")
	network := fs.Int64("network", 256, "`MiB` through the network, each way")
	stdio := fs.Int64("stdio", 1000, "`MB` through the standard streams, each way")
	fs.Parse(args)
	if fs.NArg() > 0 || *rounds < 1 || *mib < 1 || *network < 1 || *stdio < 1 {
		fs.Usage()
		return errors.New("wrong arguments")
	}
	sections := strings.Split(*only, ",")
	for _, s := range sections {
		if !slices.Contains(sectionNames, s) {
			return fmt.Errorf("unknown section %q: there are %s", s, strings.Join(sectionNames, ", "))
		}
	}
	log := io.Writer(os.Stderr)
	w, err := newWorkshop(ctx, *mib, log)
	if w != nil {
		defer w.close()
	}
	if err != nil {
		return err
	}
	b := &bench{
		Report: &Report{Date: time.Now(), Rounds: *rounds, Host: host(ctx, *accel), Versions: make(map[string]string)},
		w:      w, rounds: *rounds, network: *network << 20, stdio: *stdio * 1e6, log: log,
	}
	if err := b.gather(ctx, *binary, *accel, strings.Split(*skip, ",")); err != nil {
		return err
	}
	defer b.clean()
	for _, s := range []struct {
		name    string
		measure func(context.Context) error
	}{{"start", b.start}, {"memory", b.memory}, {"files", b.files}, {"network", b.net}, {"stdio", b.streams}} {
		if slices.Contains(sections, s.name) {
			if err := s.measure(ctx); err != nil {
				return err
			}
		}
	}
	if err := b.table(os.Stdout); err != nil {
		return err
	}
	data, page, err := b.save(*out)
	if err != nil {
		return err
	}
	fmt.Printf("\nnumbers: %s\npage:    %s\n", data, page)
	return nil
}

// gather finds what can be measured here, and loads the image.
func (b *bench) gather(ctx context.Context, binary, accel string, skip []string) error {
	wanted := func(name string) bool { return !slices.Contains(skip, name) }
	if _, err := os.Stat(binary); err != nil {
		b.skip("all", "manis", fmt.Errorf("%w (make build)", err))
	} else if wanted("manis") {
		m := newManis(binary, b.w.dir, b.w.run).variant("manis", "--accel", accel)
		b.manis = m
		// Also when it is not among the sections: the others need the image.
		if err := b.image(ctx); err != nil {
			b.manis = nil
			b.skip("all", "manis", err)
		} else {
			b.subjects = append(b.subjects, m)
		}
	}
	found, missing := peers(ctx, b.w, wanted)
	b.subjects = append(b.subjects, found...)
	for name, err := range missing {
		b.skip("all", name, err)
	}
	if len(b.subjects) == 0 {
		b.table(os.Stderr)
		return errors.New("nothing to measure")
	}
	for _, s := range b.subjects {
		b.Versions[s.name()] = s.version(ctx)
	}
	return nil
}

// clean ends what an interrupted run has left.
func (b *bench) clean() {
	if b.manis == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.manis.clean(ctx); err != nil {
		fmt.Fprintln(b.log, "bench: clean up:", err)
	}
}

// host describes this machine.
func host(ctx context.Context, accel string) Host {
	h := Host{CPUs: runtime.NumCPU(), Accel: accel, QEMU: firstLine(ctx, "qemu-system-x86_64", "--version")}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		h.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.MemoryMB = uint64(info.Totalram) * uint64(info.Unit) / 1e6
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		h.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			h.CPU = strings.TrimSpace(value)
			break
		}
	}
	return h
}
