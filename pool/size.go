package pool

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"manis/container"
)

// Size is a size of containers, and how many machines for it may wait.
type Size struct {
	// Container has the limits that such containers have; the rest of it counts for nothing.
	Container container.Config
	// Min machines wait when there is no demand, Max when it is high.
	Min, Max int
}

// Settings are what a user decides about a pool.
type Settings struct {
	Sizes []Size
	// Others is for how many more sizes machines are kept, once containers have asked for them in vain, and
	// OtherMax how many for each.
	Others, OtherMax int
	// Remember is how long demand is remembered: after this time half of it is forgotten.
	Remember time.Duration
	// Budget is how much memory waiting machines may take in all, Reserve how much of the host's must
	// stay available. Bytes.
	Budget, Reserve uint64
	// MaxPressure is the share of time, in percent, in which some of the host's processes wait for
	// a processor, above which no machines are made. 0: no matter.
	MaxPressure float64
}

// Kind is the machine that a container gets. To a container all of one kind are the same.
type Kind struct {
	// Key begins the names of the sockets of such machines.
	Key string `json:"key"`
	// Tap: its card is a tap, as containers of engines have one.
	Tap         bool   `json:"tap,omitempty"`
	MemoryBytes uint64 `json:"machineBytes"`
	VCPUs       int    `json:"vcpus"`
	Accel       string `json:"accel"`
}

// String names a kind in metrics: "2cpu-640MiB-tcg", "2cpu-640MiB-tcg-tap".
func (k Kind) String() string {
	s := fmt.Sprintf("%dcpu-%dMiB-%s", k.VCPUs, k.MemoryBytes>>20, k.Accel)
	if k.Tap {
		s += "-tap"
	}
	return s
}

// TapMode is the network of containers that an engine's runtime makes: their machines have a tap.
const TapMode = "tap"

// sizeOf is what of a configuration decides about the machine.
func sizeOf(cfg *container.Config) container.Config {
	accel := cfg.Accel
	if accel == "" {
		accel = "auto"
	}
	size := container.Config{Accel: accel, Resources: container.Resources{
		MemoryBytes: cfg.Resources.MemoryBytes, MilliCPUs: cfg.Resources.MilliCPUs, CPUSet: cfg.Resources.CPUSet,
	}}
	if cfg.Network.Mode == TapMode {
		size.Network.Mode = TapMode
	}
	return size
}

// sizeKey tells sizes apart.
type sizeKey struct {
	accel, cpuset string
	memory, cpus  uint64
	tap           bool
}

func keyOf(cfg *container.Config) sizeKey {
	c := sizeOf(cfg)
	return sizeKey{c.Accel, c.Resources.CPUSet, c.Resources.MemoryBytes, c.Resources.MilliCPUs, c.Network.Mode == TapMode}
}

func sameSize(a, b *container.Config) bool { return keyOf(a) == keyOf(b) }

// String is how messages name a size, by the limits of its containers.
func (s *Size) String() string {
	r := &s.Container.Resources
	var words []string
	if r.MemoryBytes > 0 {
		words = append(words, units.BytesSize(float64(r.MemoryBytes)))
	}
	if r.MilliCPUs > 0 {
		words = append(words, fmt.Sprintf("%g CPUs", float64(r.MilliCPUs)/1000))
	}
	name := "the default size"
	if len(words) > 0 {
		name = "the size " + strings.Join(words, " with ")
	}
	if s.Container.Network.Mode == TapMode {
		name += " for engines"
	}
	return name
}

// maxKinds bounds what is remembered of sizes, most of which nobody keeps machines of.
const maxKinds = 256

// kindCache remembers the kinds of sizes between reviews.
type kindCache struct {
	mu    sync.Mutex
	kinds map[sizeKey]Kind
}

func (c *kindCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds = nil
}

func (c *kindCache) get(ctx context.Context, cfg *container.Config, identify func(context.Context, *container.Config) (Kind, error)) (Kind, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := keyOf(cfg)
	if kind, ok := c.kinds[key]; ok {
		return kind, nil
	}
	kind, err := identify(ctx, cfg)
	if err != nil {
		return Kind{}, err
	}
	if c.kinds == nil || len(c.kinds) >= maxKinds {
		c.kinds = make(map[sizeKey]Kind)
	}
	c.kinds[key] = kind
	return kind, nil
}
