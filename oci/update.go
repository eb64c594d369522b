package oci

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"manis/pod"
)

// maxResources bounds a file of limits, bytes.
const maxResources = 1 << 20

func (a *app) updateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "update ID", Short: "Change the limits of a container", Args: one,
	}
	f := cmd.Flags()
	f.StringVarP(&file, "resources", "r", "", "file with the limits as config.json's linux.resources has them, '-' for standard input")
	// The flags that change something, in runc's words.
	numbers := map[string]string{
		"blkio-weight": "weight of its I/O, 10 to 1000", "cpu-period": "period of the CPU quota, microseconds", "cpu-quota": "CPU time per period, microseconds",
		"cpu-burst": "CPU time that can be saved up, microseconds", "cpu-share": "weight of its CPU time", "pids-limit": "number of processes", "cpu-idle": "1: only what nobody else wants",
	}
	values := make(map[string]*string)
	for name, help := range numbers {
		values[name] = f.String(name, "", help)
	}
	for name, help := range map[string]string{
		"memory": "limit of memory", "memory-reservation": "soft limit of memory", "memory-swap": "limit of memory and swap, -1 for none",
		"cpuset-cpus": "CPUs to use", "cpuset-mems": "memory nodes to use",
	} {
		values[name] = f.String(name, "", help)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		st, client, err := a.load(args[0])
		if err != nil {
			return err
		}
		r := new(specs.LinuxResources)
		if file != "" {
			b, err := a.readFile(file, maxResources)
			if err == nil {
				err = json.Unmarshal(b, r)
			}
			if err != nil {
				return fmt.Errorf("read the limits: %w", err)
			}
		} else {
			given := make(map[string]string)
			for name, v := range values {
				if cmd.Flags().Changed(name) {
					given[name] = *v
				}
			}
			if err := limits(r, given); err != nil {
				return err
			}
		}
		if err := client.Update(cmd.Context(), &pod.UpdateRequest{ID: st.ID, Resources: r}); err != nil {
			return stopped(err)
		}
		return a.updateGroup(st, r)
	}
	return cmd
}

// limits fills in what flags say.
func limits(r *specs.LinuxResources, given map[string]string) error {
	number := func(name string, set func(int64)) error {
		s, ok := given[name]
		if !ok {
			return nil
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %q is no number", name, s)
		}
		set(n)
		return nil
	}
	size := func(name string, set func(int64)) error {
		s, ok := given[name]
		if !ok {
			return nil
		}
		n := int64(-1)
		if s != "-1" {
			var err error
			if n, err = units.RAMInBytes(s); err != nil {
				return fmt.Errorf("invalid value for %s: %w", name, err)
			}
		}
		set(n)
		return nil
	}
	cpu := func() *specs.LinuxCPU {
		if r.CPU == nil {
			r.CPU = new(specs.LinuxCPU)
		}
		return r.CPU
	}
	memory := func() *specs.LinuxMemory {
		if r.Memory == nil {
			r.Memory = new(specs.LinuxMemory)
		}
		return r.Memory
	}
	unsigned := func(n int64) *uint64 { u := uint64(n); return &u }
	for _, err := range []error{
		number("cpu-period", func(n int64) { cpu().Period = unsigned(n) }),
		number("cpu-quota", func(n int64) { cpu().Quota = &n }),
		number("cpu-burst", func(n int64) { cpu().Burst = unsigned(n) }),
		number("cpu-share", func(n int64) { cpu().Shares = unsigned(n) }),
		number("cpu-idle", func(n int64) { cpu().Idle = &n }),
		number("pids-limit", func(n int64) { r.Pids = &specs.LinuxPids{Limit: &n} }),
		number("blkio-weight", func(n int64) { w := uint16(n); r.BlockIO = &specs.LinuxBlockIO{Weight: &w} }),
		size("memory", func(n int64) { memory().Limit = &n }),
		size("memory-reservation", func(n int64) { memory().Reservation = &n }),
		size("memory-swap", func(n int64) { memory().Swap = &n }),
	} {
		if err != nil {
			return err
		}
	}
	if s, ok := given["cpuset-cpus"]; ok {
		cpu().Cpus = s
	}
	if s, ok := given["cpuset-mems"]; ok {
		cpu().Mems = s
	}
	return nil
}
