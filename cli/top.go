package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	monitorapi "manis/api/monitor"
	"manis/container"
)

func (a *app) topCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "top CONTAINER",
		Short:             "Display the running processes of a container",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("options for ps are not supported: the processes are listed by the guest's agent, not by a ps program")
			}
			if _, err := a.container(args[0]); err != nil {
				e, err := a.orEngines(cmd.Context(), args[0], err)
				if err != nil {
					return err
				}
				return a.topOfEngine(cmd.Context(), e)
			}
			return a.ask(cmd.Context(), args[0], "list the processes of", func(ctx context.Context, api monitorapi.MonitorService) error {
				ctx, cancel := context.WithTimeout(ctx, requestTime)
				defer cancel()
				list, err := api.Top(ctx, &monitorapi.Empty{})
				if err != nil {
					return err
				}
				return a.showProcesses(list)
			})
		},
	}
}

func (a *app) showProcesses(list *monitorapi.TopResponse) error {
	w := tabwriter.NewWriter(a.out, 20, 1, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(list.Titles, "\t"))
	for _, row := range list.Rows {
		cells := slices.Clone(row.Cells)
		for i, c := range cells {
			cells[i] = printable(c)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// printable takes the sting out of text that the guest chose: a process may call
// itself by a terminal's escape sequence.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func (a *app) portCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "port CONTAINER [PRIVATE_PORT[/PROTO]]",
		Short:             "List port mappings or a specific mapping for the container",
		Args:              needs(1, 2),
		ValidArgsFunction: a.containerNames(isLive),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.container(args[0])
			if err != nil {
				return err
			}
			st, err := c.State()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				for _, p := range st.Ports {
					for _, host := range hostAddresses(p) {
						fmt.Fprintf(a.out, "%d/%s -> %s\n", p.ContainerPort, p.Protocol, host)
					}
				}
				return nil
			}
			number, proto, _ := strings.Cut(args[1], "/")
			if proto == "" {
				proto = "tcp"
			}
			port, err := strconv.ParseUint(number, 10, 16)
			if err != nil {
				return fmt.Errorf("invalid port %q", args[1])
			}
			found := false
			for _, p := range st.Ports {
				if p.ContainerPort == uint16(port) && p.Protocol == proto {
					for _, host := range hostAddresses(p) {
						fmt.Fprintln(a.out, host)
						found = true
					}
				}
			}
			if !found {
				return fmt.Errorf("no public port '%d/%s' published for %s", port, proto, args[0])
			}
			return nil
		},
	}
}

// hostAddresses are the addresses at which a published port is reached: two, when
// it is every address of the host.
func hostAddresses(p container.Port) []string {
	if p.HostIP.IsValid() {
		return []string{netip.AddrPortFrom(p.HostIP, p.HostPort).String()}
	}
	return []string{
		netip.AddrPortFrom(netip.IPv4Unspecified(), p.HostPort).String(),
		netip.AddrPortFrom(netip.IPv6Unspecified(), p.HostPort).String(),
	}
}
