package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"manis/container"
	"manis/place"
	"manis/pool"
)

// host has 16 GiB, half of which are available.
type host struct{ pool.ThisHost }

func (host) Available() (uint64, error) { return 8 << 30, nil }
func (host) Total() (uint64, error)     { return 16 << 30, nil }

func size(accel string, memory, cpus uint64, least, most int) pool.Size {
	return pool.Size{
		Container: container.Config{Accel: accel, Resources: container.Resources{MemoryBytes: memory, MilliCPUs: cpus}},
		Min:       least, Max: most,
	}
}

func read(t *testing.T, file string, args ...string) (pool.Settings, error) {
	t.Helper()
	places := &place.Places{Config: t.TempDir()}
	if file != "" {
		if err := os.WriteFile(places.PoolSettings(), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newSource()
	if err := s.flags.Parse(args); err != nil {
		return pool.Settings{}, err
	}
	s.path(places)
	return s.settings(host{})
}

func TestSettings(t *testing.T) {
	const file = `{"accel": "tcg", "sizes": [{"waiting": 1}, {"memory": "1g", "cpus": 1.5, "waiting": 0, "max": 3}],
		"otherSizes": 0, "remember": "1m", "memoryBudget": "2g", "memoryReserve": "1g", "maxPressure": 0}`
	usual := pool.Settings{Sizes: []pool.Size{size("auto", 0, 0, 2, 8)}, Others: 4, OtherMax: 8,
		Remember: 5 * time.Minute, Budget: 2 << 30, Reserve: 1 << 30, MaxPressure: defaultPressure}
	with := func(change func(*pool.Settings)) pool.Settings {
		s := usual
		change(&s)
		return s
	}
	ofFile := pool.Settings{Sizes: []pool.Size{size("tcg", 0, 0, 1, 1), size("tcg", 1<<30, 1500, 0, 3)}, OtherMax: 8,
		Remember: time.Minute, Budget: 2 << 30, Reserve: 1 << 30}
	tests := []struct {
		name, file, args string
		want             pool.Settings
	}{
		{"nothing said", "", "", usual},
		{"an empty file", "{}", "", usual},
		{"a number alone is kept", "", "-n 3", with(func(s *pool.Settings) { s.Sizes, s.OtherMax = []pool.Size{size("auto", 0, 0, 3, 3)}, 3 })},
		{"a number and a maximum", "", "-n 0 --max 5", with(func(s *pool.Settings) { s.Sizes, s.OtherMax = []pool.Size{size("auto", 0, 0, 0, 5)}, 5 })},
		{"a maximum alone", "", "--max 3", with(func(s *pool.Settings) { s.Sizes, s.OtherMax = []pool.Size{size("auto", 0, 0, 2, 3)}, 3 })},
		{"another size", "", "-m 100m --cpus 1 --accel kvm", with(func(s *pool.Settings) { s.Sizes = []pool.Size{size("kvm", 100<<20, 1000, 2, 8)} })},
		{"sizes", "", "--size memory=1g,cpus=2,waiting=1,max=4 --size memory=2g", with(func(s *pool.Settings) {
			s.Sizes = []pool.Size{size("auto", 1<<30, 2000, 1, 4), size("auto", 2<<30, 0, 1, 1)}
		})},
		{"a size for engines", "", "--size waiting=2,max=4,engines=true", with(func(s *pool.Settings) {
			one := size("auto", 0, 0, 2, 4)
			one.Container.Network.Mode = pool.TapMode
			s.Sizes = []pool.Size{one}
		})},
		{"sizes and the default one", "", "-n 1 --size memory=1g", with(func(s *pool.Settings) {
			s.Sizes, s.OtherMax = []pool.Size{size("auto", 0, 0, 1, 1), size("auto", 1<<30, 0, 1, 1)}, 1
		})},
		{"amounts", "", "--memory-budget 300m --memory-reserve 0 --remember 10s --other-sizes 0 --max-pressure 12.5", with(func(s *pool.Settings) {
			s.Budget, s.Reserve, s.Remember, s.Others, s.MaxPressure = 300<<20, 0, 10*time.Second, 0, 12.5
		})},
		{"a file", file, "", ofFile},
		{"flags win", file, "-n 4 --accel auto --remember 2h --other-sizes 2 --memory-budget 1g", pool.Settings{
			Sizes: []pool.Size{size("auto", 0, 0, 4, 4)}, Others: 2, OtherMax: 4, Remember: 2 * time.Hour, Budget: 1 << 30, Reserve: 1 << 30,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := read(t, tt.file, strings.Fields(tt.args)...)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestBadSettings(t *testing.T) {
	tests := []struct{ name, file, args, words string }{
		{"none", "", "-n 0", "between 1 and 1000"},
		{"too many", "", "-n 1001", "between 0 and 1000"},
		{"maximum below minimum", "", "-n 3 --max 2", "at least"},
		{"memory", "", "-m lots", "lots"},
		{"cpus", "", "--cpus -1", "CPUs"},
		{"accel", "", "--accel magic", "magic"},
		{"size without value", "", "--size memory", "KEY=VALUE"},
		{"engines of a size", "", "--size engines=docker", "neither true nor false"},
		{"unknown key of a size", "", "--size colour=red", "colour"},
		{"no number", "", "--size waiting=two", "two"},
		{"budget", "", "--memory-budget -1", "-1"},
		{"remember", "", "--remember 1ms", "1s and 24h"},
		{"pressure", "", "--max-pressure 101", "101"},
		{"other sizes", "", "--other-sizes -1", "-1"},
		{"no file", "", "--config /nonexistent.json", "/nonexistent.json"},
		{"no JSON", "{", "", "manisd.json"},
		{"unknown word", `{"size": 1}`, "", "size"},
		{"more than one", "{} {}", "", "more than one"},
		{"bad size in the file", `{"sizes": [{"cpus": 0.001}]}`, "", "too few"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := read(t, tt.file, strings.Fields(tt.args)...); err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v does not say %q", err, tt.words)
			}
		})
	}
}

// The settings in the documentation are settings.
func TestExampleIsRead(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "manisd.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(t, string(b))
	if err != nil || len(got.Sizes) != 3 || got.Sizes[1].Container.Network.Mode != pool.TapMode {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add(`{"sizes": [{"memory": "1g", "cpus": 1.5, "waiting": 0, "max": 3}], "remember": "1m"}`, "memory=1g,cpus=2,waiting=1,max=4")
	f.Fuzz(func(t *testing.T, file, size string) {
		s, err := read(t, file, "--size", size)
		if err != nil {
			return
		}
		for _, one := range s.Sizes {
			if one.Min < 0 || one.Max < max(one.Min, 1) || one.Max > maxWaiting {
				t.Errorf("%q and %q became %+v", file, size, one)
			}
		}
	})
}
