package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"manis/cli/present"
	"manis/version"
)

func versionLine() string { return "Manis version " + version.Version }

// versionShape is what version --format sees.
type versionShape struct {
	Client clientShape
}

type clientShape struct {
	Version   string
	GoVersion string
	Os        string
	Arch      string
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version [OPTIONS]",
		Short: "Show the Manis version information",
		Args:  needs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := versionShape{clientShape{version.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}}
			if format == "json" {
				format = "{{json .}}"
			}
			if format != "" {
				return present.Inspect(a.out, format, []any{v})
			}
			_, err := fmt.Fprintf(a.out, "Manis:\n Version:     %s\n Go version:  %s\n OS/Arch:     %s/%s\n",
				v.Client.Version, v.Client.GoVersion, v.Client.Os, v.Client.Arch)
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return cmd
}
