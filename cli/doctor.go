package cli

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"manis/cli/present"
	"manis/cli/terminal"
	"manis/host"
	"manis/monitor"
	"manis/place"
	"manis/policy"
	"manis/vmm/qemu"
)

func (a *app) doctorCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "doctor [OPTIONS]",
		Short: "Examine what this host can do, and say what to do where it is not well",
		Long: "Examine what this host can do, and say what to do where it is not well.\n\n" +
			"The exit code is 0 when containers can run, also with warnings, and 1 when they cannot.",
		Args: needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			subject, err := a.subject()
			if err != nil {
				return err
			}
			checks := append(host.Examine(cmd.Context(), subject), a.policyCheck(), confidentialCheck())
			return a.doctor(checks, format)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return cmd
}

// subject is this installation on this host. A guest image that is missing is
// for the examination to report.
func (a *app) subject() (host.Subject, error) {
	places, err := a.places()
	if err != nil {
		return host.Subject{}, err
	}
	guest, err := place.FindGuest()
	if err != nil {
		guest = &place.Guest{}
	}
	return host.Subject{
		Accelerators: *monitor.Accelerators(places, qemu.New(""), guest),
		Initrd:       guest.Initramfs,
		Dirs: []host.Dir{
			{Name: "containers", Path: places.Containers()},
			{Name: "images", Path: places.Images()},
			{Name: "volumes", Path: places.Volumes(), Volumes: true},
			{Name: "cache", Path: places.Cache},
		},
	}, nil
}

// policyCheck says which policy is in force. With one that cannot be read nothing is started.
func (a *app) policyCheck() host.Check {
	c := host.Check{Name: "policy", Status: host.OK, Detail: "none: everything may be started"}
	places, err := a.places()
	var p *policy.Policy
	if err == nil {
		p, err = policy.Load(places.Policy())
	}
	switch {
	case err != nil:
		c.Status, c.Detail, c.Advice = host.Fail, err.Error(), "mend the file or remove it (docs/POLICY.md)"
	case p != nil:
		c.Detail = fmt.Sprintf("%s, from the profile %s", p.File, p.Profile)
	}
	return c
}

// confidentialCheck looks for what the class confidential needs, and no other one.
func confidentialCheck() host.Check {
	c := host.Check{Name: "confidential", Status: host.OK, Detail: "without hardware: changes show, root on this host can read the memory"}
	_, tpm := exec.LookPath("swtpm")
	_, firmware := place.FindFirmware()
	if err := errors.Join(tpm, firmware); err != nil {
		c.Status, c.Detail = host.Warn, "not possible: "+strings.ReplaceAll(err.Error(), "\n", "; ")
		c.Advice = "for containers of this class install the packages ovmf and swtpm"
	}
	return c
}

func (a *app) doctor(checks []host.Check, format string) error {
	failed := 0
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
		if c.Status == host.Fail {
			failed++
		}
	}
	if format != "" {
		if format == "json" {
			format = "{{json .}}"
		}
		list := make([]any, len(checks))
		for i, c := range checks {
			list[i] = c
		}
		if err := present.Inspect(a.out, format, list); err != nil {
			return err
		}
	} else {
		paint := terminal.Paints(a.out)
		colours := map[host.Status]terminal.Colour{host.OK: terminal.Green, host.Warn: terminal.Yellow, host.Fail: terminal.Red}
		for _, c := range checks {
			fmt.Fprintf(a.out, "%s  %-*s  %s\n", paint.Paint(colours[c.Status], fmt.Sprintf("%-4s", c.Status)), width, c.Name, c.Detail)
			if c.Advice != "" {
				fmt.Fprintf(a.out, "      %-*s  -> %s\n", width, "", c.Advice)
			}
		}
	}
	if failed > 0 {
		return &status{1, fmt.Errorf("%d of %d checks failed: containers cannot run here yet", failed, len(checks))}
	}
	return nil
}
