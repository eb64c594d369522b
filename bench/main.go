// Command bench measures Manis beside runc, crun and gVisor's runsc on the same
// machine, in the same run, with the same root filesystem: how fast a
// container starts, what it costs in memory, and how fast files, network and
// streams are. It prints a table and writes a page with charts and the raw
// numbers. It uses Manis only as a user does: through its command line.
//
//	go run ./bench -rounds 5 -only start,memory
//
// With -gate it compares starts with those that were accepted, and fails if they
// have become slower: see verdict.go.
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

// options are what the flags say.
type options struct {
	rounds        int
	sections      []string // to measure
	skip          []string // runtimes to leave out
	out           string
	binary, accel string
	data          int64 // MiB of each file
	network       int64 // bytes
	stdio         int64 // bytes
	atOnce        int   // starts of a burst
	inARow        int   // starts one after the other
	idle          int   // containers side by side
	gate, accept  bool
	accepted      string // file
}

func parse(args []string, usage io.Writer) (*options, error) {
	o := new(options)
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(usage)
	fs.IntVar(&o.rounds, "rounds", 10, "`number` of starts of each runtime; the other sections take a third of it")
	fs.Var(&choice{&o.sections, "section", sectionNames}, "only", "`sections` to measure, by comma: "+strings.Join(sectionNames, ", "))
	fs.StringVar(&o.out, "out", filepath.Join(top(), "bench", "results"), "`directory` for the numbers and the page")
	fs.StringVar(&o.binary, "manis", filepath.Join(top(), "bin", "manis"), "`path` of the binary to measure")
	fs.StringVar(&o.accel, "accel", "auto", "acceleration of Manis: auto, kvm or tcg")
	fs.Var(&choice{&o.skip, "runtime", subjectNames}, "skip", "`runtimes` to leave out, by comma: "+strings.Join(subjectNames, ", "))
	fs.Int64Var(&o.data, "data", 64, "`MiB` of each data file")
	network := fs.Int64("network", 256, "`MiB` through the network, each way")
	stdio := fs.Int64("stdio", 1000, "`MB` through the standard streams, each way")
	fs.IntVar(&o.atOnce, "burst", 50, "`number` of starts at once")
	fs.IntVar(&o.inARow, "sequence", 200, "`number` of starts one after the other")
	fs.IntVar(&o.idle, "idle", 20, "`number` of idle containers side by side")
	fs.BoolVar(&o.gate, "gate", false, "compare the ratios of starts with the accepted ones, and report nothing else")
	fs.BoolVar(&o.accept, "accept", false, "make the ratios of starts the accepted ones, and report nothing else")
	fs.StringVar(&o.accepted, "accepted", filepath.Join(top(), "bench", "accepted.json"), "`file` of the accepted ratios")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 || o.rounds < 1 || o.atOnce < 1 || o.inARow < 1 || o.idle < 1 || o.gate && o.accept || o.data < 1 || *network < 1 || *stdio < 1 {
		fs.Usage()
		return nil, errors.New("wrong arguments")
	}
	if o.sections == nil {
		o.sections = sectionNames
	}
	o.network, o.stdio = *network<<20, *stdio*1e6
	return o, nil
}

// choice is a flag of some of the names that there are. A name that nobody knows is an
// error: it would choose something else than its user believes.
type choice struct {
	chosen *[]string
	what   string
	known  []string
}

func (c *choice) String() string {
	if c.chosen == nil {
		return ""
	}
	return strings.Join(*c.chosen, ",")
}

// Set adds to what was chosen before: the flag may be given again.
func (c *choice) Set(s string) error {
	for name := range strings.SplitSeq(s, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(c.known, name) {
			return fmt.Errorf("unknown %s %q: there are %s", c.what, name, strings.Join(c.known, ", "))
		}
		if !slices.Contains(*c.chosen, name) {
			*c.chosen = append(*c.chosen, name)
		}
	}
	return nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.gate || o.accept {
		o.sections, o.data = []string{"start"}, 1
	}
	log := io.Writer(os.Stderr)
	w, err := newWorkshop(ctx, o.data, log)
	if w != nil {
		defer w.close()
	}
	if err != nil {
		return err
	}
	b := &bench{
		Report: &Report{Date: time.Now(), Rounds: o.rounds, Host: host(ctx, o.accel), Versions: make(map[string]string)},
		w:      w, rounds: o.rounds, network: o.network, stdio: o.stdio,
		atOnce: o.atOnce, inARow: o.inARow, idle: o.idle, log: log, contention: contention,
	}
	// A gate has no minutes to spare.
	w.build = !o.gate
	if err := b.gather(ctx, o); err != nil {
		return err
	}
	defer b.clean()
	g := &gate{path: o.accepted, rounds: o.rounds}
	switch {
	case o.gate:
		return g.run(ctx, b, os.Stdout)
	case o.accept:
		return g.accept(ctx, b, os.Stdout)
	}
	for _, s := range []struct {
		name    string
		measure func(context.Context) error
	}{{"start", b.start}, {"application", b.application}, {"engine", b.engines}, {"burst", b.bursts}, {"density", b.density}, {"memory", b.memory}, {"files", b.files}, {"network", b.net}, {"namespace", b.namespace}, {"stdio", b.streams}} {
		if slices.Contains(o.sections, s.name) {
			if err := s.measure(ctx); err != nil {
				return err
			}
		}
	}
	if err := b.table(os.Stdout); err != nil {
		return err
	}
	data, page, err := b.save(o.out)
	if err != nil {
		return err
	}
	history, err := readHistory(o.out)
	if err != nil {
		return err
	}
	if slices.Contains(o.sections, "start") {
		if err := historyTable(os.Stdout, history); err != nil {
			return err
		}
	}
	fmt.Printf("\nnumbers: %s\npage:    %s\n", data, page)
	failed := 0
	for _, f := range b.Failures {
		failed += f.Count
	}
	if failed > 0 {
		return fmt.Errorf("%d starts failed that should not have", failed)
	}
	return nil
}

// gather finds what can be measured here, and loads the image.
func (b *bench) gather(ctx context.Context, o *options) error {
	wanted := func(name string) bool { return !slices.Contains(o.skip, name) }
	if wanted("manis") {
		if err := b.prepare(ctx, o); err != nil {
			b.skip("all", "manis", err)
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

// prepare makes Manis a subject. The image that is loaded for that is measured as well, if
// that is among the sections.
func (b *bench) prepare(ctx context.Context, o *options) error {
	if _, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	m := newManis(o.binary, b.w.dir, b.w.run).variant("manis", "--accel", o.accel)
	took, err := m.load(ctx, b.w.layout)
	if err != nil {
		return err
	}
	if slices.Contains(o.sections, "image") {
		b.add("image", "load and convert", m.name(), "MB/s", true, mb(uint64(len(dataFiles))*uint64(b.w.bytes))/took.Seconds())
	}
	// What a template needs to be as fast as it gets may be made after its first starts.
	if _, err := m.manis(ctx, "template", "build", "--accel", o.accel); err != nil {
		fmt.Fprintln(b.log, "bench: without a template:", err)
	}
	b.manis = m
	b.subjects = append(b.subjects, m)
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
