package cli

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"manis/cli/present"
	"manis/pool"
)

func (a *app) poolCommand() *cobra.Command {
	return a.noun("pool", "Look at the machines that wait for containers", a.poolListCommand())
}

// poolRow is one line of pool ls.
type poolRow struct {
	Size, Memory, CPUs, Accel, For, Waiting, Wanted, Min, Max, Asked, Claims, Misses, Died, MemoryUsage string
}

var poolHeader = poolRow{
	Size: "SIZE", Memory: "MEMORY", CPUs: "CPUS", Accel: "ACCEL", For: "FOR", Waiting: "WAITING", Wanted: "WANTED", Min: "MIN", Max: "MAX", Asked: "ASKED FOR",
	Claims: "CLAIMS", Misses: "MISSES", Died: "DIED", MemoryUsage: "MEM USAGE",
}

func newPoolRow(s pool.SizeState) poolRow {
	return poolRow{
		Size: s.Kind.String(), Memory: units.BytesSize(float64(s.Kind.MemoryBytes)), CPUs: strconv.Itoa(s.VCPUs), Accel: s.Accel, For: forWhom(s.Tap),
		Waiting: strconv.Itoa(s.Waiting), Wanted: strconv.Itoa(s.Wanted), Min: strconv.Itoa(s.Min), Max: strconv.Itoa(s.Max),
		Asked: strconv.FormatBool(s.Asked), Claims: fmt.Sprint(s.Claims), Misses: fmt.Sprint(s.Misses), Died: fmt.Sprint(s.Died),
		MemoryUsage: units.BytesSize(float64(s.MemoryBytes)),
	}
}

func (a *app) poolListCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List the sizes of machines that manisd keeps, and how many wait",
		Args:    needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			places, err := a.places()
			if err != nil {
				return err
			}
			state, err := pool.Ask(cmd.Context(), places.PoolSocket())
			if errors.Is(err, pool.ErrNone) {
				return fmt.Errorf("%w (start it: manisd, or systemctl start manisd)", err)
			}
			if err != nil {
				return err
			}
			if state.Paused != "" {
				a.note("no more machines are made at the moment: %s", state.Paused)
			}
			var rows []poolRow
			for _, s := range state.Sizes {
				if s.Key != "" {
					rows = append(rows, newPoolRow(s))
				}
			}
			return present.List(a.out, format,
				`{{.CPUs}}\t{{.Memory}}\t{{.Accel}}\t{{.For}}\t{{.Waiting}}\t{{.Wanted}}\t{{.Min}}\t{{.Max}}\t{{.Claims}}\t{{.Misses}}\t{{.Died}}\t{{.MemoryUsage}}`, poolHeader, rows)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", formatHelp)
	return cmd
}

// forWhom says whose containers get machines of a kind.
func forWhom(tap bool) string {
	if tap {
		return "engines"
	}
	return "manis run"
}
