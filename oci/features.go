package oci

import (
	"github.com/spf13/cobra"

	"manis/bundle"
)

func (a *app) featuresCommand() *cobra.Command {
	return &cobra.Command{
		Use: "features", Short: "Print what of the specification there is, as JSON", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return a.printJSON(bundle.Features()) },
	}
}
