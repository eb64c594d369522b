package oci

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"manis/pod"
)

// defaultImage is the directory of a checkpoint in the current one, as runc has it.
const defaultImage = "checkpoint"

// imageOptions are what checkpoint and restore have in common.
type imageOptions struct {
	image, work string
	lazy        bool
}

// flags declares them. Most are CRIU's, which saves processes one by one and has to be told what to do
// with each thing between them and the rest of the host. In a machine all of these are inside.
func (o *imageOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.image, "image-path", "", "the checkpoint's directory (default: checkpoint in the current one)")
	f.StringVar(&o.work, "work-path", "", "directory for the statistics (default: there are none)")
	f.Bool("tcp-established", false, "accepted: connections are in the machine's memory and go on if both ends have their addresses")
	f.Bool("tcp-skip-in-flight", false, "accepted: see --tcp-established")
	f.Bool("ext-unix-sk", false, "accepted: a machine has no unix sockets outside")
	f.Bool("shell-job", false, "accepted: the terminal is the machine's own")
	f.Bool("file-locks", false, "accepted: locks are the guest's")
	f.Bool("link-remap", false, "accepted: a file that was removed while it was open is refused in any case")
	f.Bool("auto-dedup", false, "accepted: there are no earlier parts of a checkpoint")
	f.String("manage-cgroups-mode", "", "accepted (soft, full, strict, ignore): the limits of the guest's groups are as they were saved")
	f.StringSlice("empty-ns", nil, "accepted: the content of a network namespace is always the new one's")
	f.Int("status-fd", -1, "accepted: nothing waits for pages")
	f.BoolVar(&o.lazy, "lazy-pages", false, "not there: pages are in the checkpoint, and read when they are used")
}

// directory checks the options and returns the checkpoint's directory, absolute.
func (o *imageOptions) directory(cmd *cobra.Command) (string, error) {
	mode, _ := cmd.Flags().GetString("manage-cgroups-mode")
	if modes := []string{"", "soft", "full", "strict", "ignore"}; !slices.Contains(modes, mode) {
		return "", fmt.Errorf("invalid manage cgroups mode %q (%s are possible)", mode, strings.Join(modes[1:], ", "))
	}
	if o.lazy {
		return "", errors.New("--lazy-pages: pages cannot be fetched from elsewhere later (a restored machine reads them from the checkpoint when it uses them)")
	}
	image := o.image
	if image == "" {
		image = defaultImage
	}
	image, err := filepath.Abs(image)
	if err != nil {
		return "", fmt.Errorf("find the directory of the checkpoint: %w", err)
	}
	return image, nil
}

func (a *app) checkpointCommand() *cobra.Command {
	var o imageOptions
	var leave, preDump bool
	var parent, server string
	cmd := &cobra.Command{
		Use: "checkpoint [flags] ID", Short: "Save a running container with its memory, for others to go on from", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case preDump, parent != "":
				return errors.New("--pre-dump, --parent-path: a checkpoint is made at once, not in parts that build on each other")
			case server != "":
				return errors.New("--page-server: pages are written to the checkpoint's directory only")
			}
			image, err := o.directory(cmd)
			if err != nil {
				return err
			}
			st, client, err := a.load(args[0])
			if err != nil {
				return err
			}
			s, err := status(cmd.Context(), st, client)
			if err != nil {
				return err
			}
			if s.Status == specs.StateCreated || s.Status == specs.StateStopped || !st.alive() {
				return fmt.Errorf("container cannot be checkpointed in %s state", s.Status)
			}
			done, err := client.Checkpoint(cmd.Context(), &pod.CheckpointRequest{ID: st.ID, Image: image, LeaveRunning: leave})
			if err != nil {
				return stopped(err)
			}
			if o.work != "" {
				a.warn(writeDump(o.work, done.Stood, done.Bytes))
			}
			return nil
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&leave, "leave-running", false, "let the container run on")
	f.BoolVar(&preDump, "pre-dump", false, "not there: a checkpoint is made at once")
	f.StringVar(&parent, "parent-path", "", "not there: see --pre-dump")
	f.StringVar(&server, "page-server", "", "not there: pages are written to the checkpoint's directory")
	return cmd
}

// warn says what went wrong with what nobody depends on.
func (a *app) warn(err error) {
	if err != nil {
		a.log("warning", fmt.Sprintf("write the statistics: %v", err))
	}
}

func (a *app) restoreCommand() *cobra.Command {
	var o imageOptions
	var c creation
	cmd := &cobra.Command{
		Use: "restore [flags] ID", Short: "Make a container from a bundle that goes on from a checkpoint", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := o.directory(cmd)
			if err != nil {
				return err
			}
			c.image = image
			begun := time.Now()
			c.restored = func() {
				if o.work != "" {
					a.warn(writeRestore(o.work, time.Since(begun)))
				}
			}
			return a.launch(cmd.Context(), args[0], &c)
		},
	}
	c.flags(cmd)
	o.flags(cmd)
	f := cmd.Flags()
	f.BoolVarP(&c.detach, "detach", "d", false, "do not wait for the container")
	f.Bool("no-subreaper", false, "accepted: nobody has to be reaped here")
	f.String("lsm-profile", "", "accepted: profiles are the host's, and nothing of the container runs there")
	f.String("lsm-mount-context", "", "accepted: see --lsm-profile")
	return cmd
}
