package declare

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"manis/container"
)

// Docker's defaults of a health check.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
)

func (f *Flags) setHealth(c *container.Config, img *Image, _ []string, _ Host) error {
	flags := f.health
	given := flags.cmd.set || flags.interval != 0 || flags.timeout != 0 || flags.startPeriod != 0 || flags.startInterval != 0 || flags.retries != 0
	if f.noHealth {
		if given {
			return errors.New("--no-healthcheck conflicts with --health-* options")
		}
		return nil
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"health-interval", flags.interval}, {"health-timeout", flags.timeout},
		{"health-start-period", flags.startPeriod}, {"health-start-interval", flags.startInterval},
	} {
		if d.value < 0 {
			return fmt.Errorf("--%s cannot be negative", d.name)
		}
		if d.value > 0 && d.value < time.Millisecond {
			return fmt.Errorf("--%s cannot be less than 1ms", d.name)
		}
	}
	if flags.retries < 0 {
		return errors.New("--health-retries cannot be negative")
	}
	var h container.Health
	if i := img.Config.Healthcheck; i != nil {
		h = container.Health{
			Test: slices.Clone(i.Test), Interval: i.Interval, Timeout: i.Timeout,
			StartPeriod: i.StartPeriod, StartInterval: i.StartInterval, Retries: i.Retries,
		}
	}
	if flags.cmd.set && flags.cmd.value != "" {
		h.Test = []string{"CMD-SHELL", flags.cmd.value}
	}
	override(&h.Interval, flags.interval, healthInterval)
	override(&h.Timeout, flags.timeout, healthTimeout)
	override(&h.StartPeriod, flags.startPeriod, 0)
	override(&h.StartInterval, flags.startInterval, healthStartInterval)
	override(&h.Retries, flags.retries, healthRetries)
	if len(h.Test) == 0 || h.Test[0] == "NONE" || h.Test[0] == "" {
		return nil
	}
	c.Health = &h
	return nil
}

// override replaces the image's value by the flag's, and a missing one by the
// default. What an image gives may be nonsense.
func override[T int | time.Duration](value *T, flag, normal T) {
	switch {
	case flag > 0:
		*value = flag
	case *value <= 0:
		*value = normal
	}
}
