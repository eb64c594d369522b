package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"manis/pod"
)

// reported is what state and list say of a container, in runc's words.
type reported struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func (a *app) reportOf(cmd *cobra.Command, st *state) (*reported, error) {
	s, err := status(cmd.Context(), st, pod.At(pod.Socket(st.Pod)))
	if err != nil {
		return nil, err
	}
	r := &reported{
		Version: st.Version, ID: st.ID, PID: st.PID, Status: string(s.Status), Bundle: st.Bundle,
		Rootfs: st.Rootfs, Created: st.Created, Annotations: st.Annotations, Owner: st.Owner,
	}
	if !st.alive() {
		r.Status = "stopped"
	}
	if r.Status == "stopped" {
		r.PID = 0
	}
	return r, nil
}

func (a *app) stateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "state ID", Short: "Print the state of a container", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			st, _, err := a.load(args[0])
			if err != nil {
				return err
			}
			r, err := a.reportOf(cmd, st)
			if err != nil {
				return err
			}
			return a.printJSON(r)
		},
	}
}

func (a *app) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", b)
	return err
}

func (a *app) listCommand() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use: "list", Short: "List containers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.open(); err != nil {
				return err
			}
			states, err := a.store.all()
			if err != nil {
				return err
			}
			list := []*reported{}
			for _, st := range states {
				if r, err := a.reportOf(cmd, st); err == nil {
					list = append(list, r)
				}
			}
			switch {
			case quiet:
				for _, r := range list {
					fmt.Fprintln(a.out, r.ID)
				}
			case format == "json":
				return json.NewEncoder(a.out).Encode(list)
			case format == "table":
				w := tabwriter.NewWriter(a.out, 12, 1, 3, ' ', 0)
				fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
				for _, r := range list {
					fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", r.ID, r.PID, r.Status, r.Bundle, r.Created.Format(time.RFC3339Nano), r.Owner)
				}
				return w.Flush()
			default:
				return fmt.Errorf("invalid format option: %q (table and json are possible)", format)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

// stopped gives a running container's verbs runc's words for one that is not.
func stopped(err error) error {
	if errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound) {
		return errors.New("container not running")
	}
	return err
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause ID", Short: "Freeze the processes of a container", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			st, client, err := a.load(args[0])
			if err != nil {
				return err
			}
			return stopped(client.Pause(cmd.Context(), st.ID))
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume ID", Short: "Thaw the processes of a container", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			st, client, err := a.load(args[0])
			if err != nil {
				return err
			}
			return stopped(client.Resume(cmd.Context(), st.ID))
		},
	}
}

func (a *app) psCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "ps ID", Short: "List the processes of a container: by their ids in it, or as JSON the ids on the host of those that stand for them",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%q requires a container's id", cmd.CommandPath())
			}
			return nil // ps options of runc's follow; the list has its own columns
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			st, client, err := a.load(args[0])
			if err != nil {
				return err
			}
			switch format {
			case "json":
				// For programs, which look for them on the host: Docker shows what ps(1) says of them.
				s, err := client.Status(cmd.Context(), st.ID)
				if err != nil {
					return stopped(err)
				}
				pids := []int{}
				if s.Status != specs.StateStopped {
					pids = append(append(pids, st.PID), s.ExecPIDs...)
				}
				return json.NewEncoder(a.out).Encode(pids)
			case "table":
				r, err := client.Processes(cmd.Context(), st.ID)
				if err != nil {
					return stopped(err)
				}
				w := tabwriter.NewWriter(a.out, 4, 1, 2, ' ', 0)
				fmt.Fprint(w, "UID\tPID\tPPID\tSTIME\tTTY\tTIME\tCMD\n")
				for _, p := range r.Processes {
					used := time.Duration(p.CpuMs) * time.Millisecond
					fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%02d:%02d:%02d\t%s\n", printable(p.User), p.Pid, p.Ppid, time.Unix(0, p.StartedUnixNs).Format("15:04"),
						printable(p.Tty), int(used.Hours()), int(used.Minutes())%60, int(used.Seconds())%60, printable(p.Command))
				}
				return w.Flush()
			}
			return fmt.Errorf("invalid format option: %q (table and json are possible)", format)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	return cmd
}

// printable keeps what a guest says from speaking to the user's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// readFile reads a file, or standard input for "-", up to a limit.
func (a *app) readFile(path string, limit int64) ([]byte, error) {
	f := a.in
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}
