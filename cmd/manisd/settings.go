package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"manis/cli/declare"
	"manis/place"
	"manis/pool"
)

// source is where the settings come from: flags, and a file that is read again when they are reloaded.
// What a flag says wins.
type source struct {
	flags *pflag.FlagSet
	file  string
	named bool // by a flag: then it must be there

	accel           string
	waiting, max    int
	memory, cpus    string
	sizes           []string
	others          int
	remember        time.Duration
	budget, reserve string
	pressure        float64
}

// Defaults, and limits of what makes sense.
const (
	defaultWaiting  = 2
	defaultMax      = 8
	defaultOthers   = 4
	defaultRemember = 5 * time.Minute
	defaultPressure = 75
	maxWaiting      = 1000
	maxSizes        = 64
)

func newSource() *source {
	s := &source{flags: pflag.NewFlagSet("manisd", pflag.ContinueOnError)}
	f := s.flags
	f.SortFlags = false
	f.StringVar(&s.file, "config", "", "Read settings from this `file` (default manisd.json in the configuration directory)")
	f.IntVarP(&s.waiting, "waiting", "n", defaultWaiting, "Number of machines that wait when there is no demand")
	f.IntVar(&s.max, "max", defaultMax, "Number of machines of one size that wait when demand is high (with -n alone: as many as that)")
	f.StringVarP(&s.memory, "memory", "m", "", "Memory limit of the containers")
	f.StringVar(&s.cpus, "cpus", "", "Number of CPUs of the containers")
	f.StringVar(&s.accel, "accel", "auto", `How the VMs run ("auto", "kvm", "tcg")`)
	f.StringArrayVar(&s.sizes, "size", nil, "A `size` to keep instead, such as memory=1g,cpus=2,waiting=1,max=4, with engines=true for containers of engines and for pods (may be given more than once)")
	f.IntVar(&s.others, "other-sizes", defaultOthers, "Number of sizes that are kept for a while because containers asked for them")
	f.DurationVar(&s.remember, "remember", defaultRemember, "Time after which demand is half forgotten")
	f.StringVar(&s.budget, "memory-budget", "", "Memory that waiting machines may take in all (default a quarter of what is available)")
	f.StringVar(&s.reserve, "memory-reserve", "", "Memory of the host that has to stay available (default a sixteenth of all)")
	f.Float64Var(&s.pressure, "max-pressure", defaultPressure, "Make no machines while processes of the host wait for a CPU in more than this `percent` of the time (0: no matter)")
	return s
}

// path is where the file is when no flag names one.
func (s *source) path(places *place.Places) {
	if s.named = s.file != ""; !s.named {
		s.file = places.PoolSettings()
	}
}

// written is the file.
type written struct {
	Accel         string        `json:"accel"`
	Sizes         []writtenSize `json:"sizes"`
	OtherSizes    *int          `json:"otherSizes"`
	Remember      string        `json:"remember"`
	MemoryBudget  string        `json:"memoryBudget"`
	MemoryReserve string        `json:"memoryReserve"`
	MaxPressure   *float64      `json:"maxPressure"`
}

type writtenSize struct {
	Memory  string      `json:"memory"`
	CPUs    json.Number `json:"cpus"`
	Waiting *int        `json:"waiting"`
	Max     *int        `json:"max"`
	// Engines: for containers of Podman and Docker.
	Engines bool `json:"engines"`
}

// settings reads everything.
func (s *source) settings(host pool.Host) (pool.Settings, error) {
	w, err := s.read()
	if err != nil {
		return pool.Settings{}, err
	}
	// What the flags say, in the file's words.
	if s.flags.Changed("accel") || w.Accel == "" {
		w.Accel = s.accel
	}
	if s.flags.Changed("other-sizes") || w.OtherSizes == nil {
		w.OtherSizes = &s.others
	}
	if s.flags.Changed("remember") || w.Remember == "" {
		w.Remember = s.remember.String()
	}
	if s.flags.Changed("max-pressure") || w.MaxPressure == nil {
		w.MaxPressure = &s.pressure
	}
	if s.budget != "" {
		w.MemoryBudget = s.budget
	}
	if s.reserve != "" {
		w.MemoryReserve = s.reserve
	}
	if sizes, err := s.sizesOfFlags(); err != nil {
		return pool.Settings{}, err
	} else if sizes != nil || len(w.Sizes) == 0 {
		w.Sizes = sizes
	}
	if w.Sizes == nil {
		least, most := defaultWaiting, s.max
		w.Sizes = []writtenSize{{Waiting: &least, Max: &most}}
	}
	return w.settings(host, s.otherMax())
}

// otherMax is how many machines may wait for a size that is not configured.
func (s *source) otherMax() int {
	if s.flags.Changed("waiting") && !s.flags.Changed("max") {
		return s.waiting
	}
	return s.max
}

func (s *source) read() (*written, error) {
	w := &written{}
	b, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) && !s.named {
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(w); err != nil {
		return nil, fmt.Errorf("read the settings %s: %w", s.file, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("read the settings %s: there is more than one object", s.file)
	}
	return w, nil
}

// sizesOfFlags are the sizes that the flags name, nil if they name none.
func (s *source) sizesOfFlags() ([]writtenSize, error) {
	var sizes []writtenSize
	one := s.flags.Changed("waiting") || s.flags.Changed("memory") || s.flags.Changed("cpus")
	if one {
		most := s.otherMax()
		sizes = append(sizes, writtenSize{Memory: s.memory, CPUs: json.Number(s.cpus), Waiting: &s.waiting, Max: &most})
	}
	for _, words := range s.sizes {
		size, err := parseSize(words)
		if err != nil {
			return nil, fmt.Errorf("--size %s: %w", words, err)
		}
		sizes = append(sizes, size)
	}
	return sizes, nil
}

// parseSize reads a size such as "memory=1g,cpus=2,waiting=1,max=4,engines=true".
func parseSize(s string) (size writtenSize, err error) {
	for word := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			return size, fmt.Errorf("%q is not KEY=VALUE", word)
		}
		number := func(to **int) error {
			n, err := strconv.Atoi(value)
			if err != nil {
				return fmt.Errorf("%s: %q is not a number", key, value)
			}
			*to = &n
			return nil
		}
		switch key {
		case "memory":
			size.Memory = value
		case "cpus":
			size.CPUs = json.Number(value)
		case "waiting":
			err = number(&size.Waiting)
		case "max":
			err = number(&size.Max)
		case "engines":
			if size.Engines, err = strconv.ParseBool(value); err != nil {
				err = fmt.Errorf("engines: %q is neither true nor false", value)
			}
		default:
			err = fmt.Errorf("%q is unknown: there are memory, cpus, waiting, max and engines", key)
		}
		if err != nil {
			return size, err
		}
	}
	return size, nil
}

// settings checks what is written and fills in what is not.
func (w *written) settings(host pool.Host, otherMax int) (s pool.Settings, err error) {
	if s.Others, s.OtherMax = *w.OtherSizes, otherMax; s.Others < 0 || s.Others > maxSizes {
		return s, fmt.Errorf("%d other sizes: between 0 and %d can be kept", s.Others, maxSizes)
	}
	if s.Remember, err = time.ParseDuration(w.Remember); err != nil || s.Remember < time.Second || s.Remember > 24*time.Hour {
		return s, fmt.Errorf("remember demand for %q: between 1s and 24h make sense", w.Remember)
	}
	if s.MaxPressure = *w.MaxPressure; !(s.MaxPressure >= 0 && s.MaxPressure <= 100) {
		return s, fmt.Errorf("a pressure of %g: percent are between 0 and 100", s.MaxPressure)
	}
	switch w.Accel {
	case "auto", "kvm", "tcg":
	default:
		return s, fmt.Errorf("accel %q is unknown: there are auto, kvm and tcg", w.Accel)
	}
	if len(w.Sizes) > maxSizes {
		return s, fmt.Errorf("%d sizes: at most %d can be kept", len(w.Sizes), maxSizes)
	}
	for _, size := range w.Sizes {
		one, err := size.size(w.Accel)
		if err != nil {
			return s, err
		}
		s.Sizes = append(s.Sizes, one)
	}
	if s.Budget, err = bytesOf("memory budget", w.MemoryBudget, func() (uint64, error) {
		n, err := host.Available()
		return n / 4, err
	}); err != nil {
		return s, err
	}
	s.Reserve, err = bytesOf("memory reserve", w.MemoryReserve, func() (uint64, error) {
		n, err := host.Total()
		return n / 16, err
	})
	return s, err
}

func (w *writtenSize) size(accel string) (pool.Size, error) {
	least := 1
	if w.Waiting != nil {
		least = *w.Waiting
	}
	size := pool.Size{Min: least, Max: least}
	if w.Max != nil {
		size.Max = *w.Max
	}
	size.Container.Accel = accel
	if w.Engines {
		size.Container.Network.Mode = pool.TapMode
	}
	limits := pflag.NewFlagSet("", pflag.ContinueOnError)
	declare.SizeFlags(limits, &size.Container.Resources)
	for name, value := range map[string]string{"memory": w.Memory, "cpus": w.CPUs.String()} {
		if value == "" {
			continue
		}
		if err := limits.Set(name, value); err != nil {
			return size, err
		}
	}
	switch {
	case size.Min < 0 || size.Min > maxWaiting:
		return size, fmt.Errorf("%d machines: between 0 and %d can wait", size.Min, maxWaiting)
	case size.Max < 1 || size.Max > maxWaiting:
		return size, fmt.Errorf("%d machines at most: between 1 and %d can wait", size.Max, maxWaiting)
	case size.Max < size.Min:
		return size, fmt.Errorf("%d machines, at most %d: the second is to be at least the first", size.Min, size.Max)
	}
	return size, nil
}

// bytesOf reads an amount of memory.
func bytesOf(what, s string, otherwise func() (uint64, error)) (uint64, error) {
	if s == "" {
		return otherwise()
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s %q: not an amount of memory, such as 2g", what, s)
	}
	return uint64(n), nil
}
