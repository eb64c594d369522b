package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	monitorapi "manis/api/monitor"
	"manis/cli/declare"
	"manis/monitor"
)

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rename CONTAINER NEW_NAME",
		Short:             "Rename a container",
		Args:              needs(2, 2),
		ValidArgsFunction: a.containerNames(anyStatus),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.container(args[0])
			if err != nil {
				return err
			}
			cfg, err := c.Config()
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(args[1], "/")
			if name == cfg.Name {
				return errors.New("renaming a container with the same name as its current name")
			}
			cfg.Name = name
			return c.SetConfig(cfg)
		},
	}
}

func (a *app) updateCommand() *cobra.Command {
	var restart string
	cmd := &cobra.Command{
		Use:               "update [OPTIONS] CONTAINER [CONTAINER...]",
		Short:             "Update configuration of one or more containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			if restart == "" {
				return &usageError{errors.New("you must provide one or more flags when using this command: --restart")}
			}
			policy, err := declare.ParseRestart(restart)
			if err != nil {
				return err
			}
			return a.each(args, func(name string) error {
				c, err := a.container(name)
				if err != nil {
					return err
				}
				cfg, err := c.Config()
				if err != nil {
					return err
				}
				if cfg.AutoRemove && policy.Policy != "no" {
					return fmt.Errorf("cannot update container %s: restart policy cannot be updated because AutoRemove is enabled for the container", name)
				}
				cfg.Restart = policy
				if err := c.SetConfig(cfg); err != nil {
					return err
				}
				client, err := monitor.Connect(cmd.Context(), c)
				if err == nil {
					defer client.Close()
					ctx, cancel := context.WithTimeout(cmd.Context(), requestTime)
					defer cancel()
					_, err = client.API().Update(ctx, &monitorapi.UpdateRequest{RestartPolicy: policy.Policy, RestartMax: int32(policy.Max)})
				}
				if err != nil && !errors.Is(err, monitor.ErrNotRunning) {
					return fmt.Errorf("cannot update container %s: %s", name, text(err))
				}
				fmt.Fprintln(a.out, name)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&restart, "restart", "", "Restart policy to apply when a container exits")
	return cmd
}
