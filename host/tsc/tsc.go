// Package tsc knows how fast the host's time stamp counter runs. A guest under
// emulation reads that counter and has to be told its frequency: its own
// calibration loops against an emulated timer and hangs on a busy host. The package
// knows nothing of guests.
package tsc

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnknown: this processor has no counter of constant frequency.
var ErrUnknown = errors.New("no time stamp counter of constant frequency")

// sample is the counter and the clock at one moment.
type sample struct{ ticks, ns int64 }

// take reads the counter between two readings of the clock and keeps the
// narrowest of several tries, so that an interruption in between does not count.
func take() (sample, error) {
	var best sample
	width := int64(-1)
	for range 8 {
		before, err := raw()
		if err != nil {
			return sample{}, err
		}
		ticks := counter()
		after, err := raw()
		if err != nil {
			return sample{}, err
		}
		if w := after - before; width < 0 || w < width {
			width, best = w, sample{ticks, before + w/2}
		}
	}
	return best, nil
}

func raw() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		return 0, fmt.Errorf("read raw clock: %w", err)
	}
	return ts.Nano(), nil
}

// Measure returns the counter's frequency in kHz. It compares counter and
// clock over an interval of this length: 10 ms give about 10 parts per million.
func Measure(interval time.Duration) (int, error) {
	if !constant() {
		return 0, ErrUnknown
	}
	var found []int64
	for range 3 {
		from, err := take()
		if err != nil {
			return 0, err
		}
		time.Sleep(interval / 3)
		to, err := take()
		if err != nil {
			return 0, err
		}
		if to.ns <= from.ns || to.ticks <= from.ticks {
			return 0, ErrUnknown
		}
		found = append(found, (to.ticks-from.ticks)*1e6/(to.ns-from.ns))
	}
	slices.Sort(found)
	return int(found[1]), nil
}
