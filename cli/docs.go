package cli

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// differences is what users of docker have to know.
//
//go:embed differences.md
var differences string

func keys(list []string) string { return "`" + strings.Join(list, "`, `") + "`" }

//go:generate go run manis/cmd/manis docs ../docs

// docsCommand writes the reference of all commands. It is hidden: contributors and
// go generate use it.
func (a *app) docsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "docs DIR",
		Short: "Write the reference of all commands to DIR/CLI.md",
		Args:  needs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			var b bytes.Buffer
			a.reference(&b)
			return os.WriteFile(filepath.Join(args[0], "CLI.md"), b.Bytes(), 0o644)
		},
	}
}

func (a *app) reference(w io.Writer) {
	root := a.tree(nil)
	fmt.Fprint(w, `# Command line reference

<!-- Written by "manis docs docs" from the command tree: change the commands, not this file. -->

`)
	fmt.Fprintf(w, "%s. Flags, output and exit codes are docker's unless said otherwise.\n", root.Short)
	fmt.Fprint(w, `
Exit codes of `+"`run`, `start -a` and `exec`"+`: the container's own; 125 when Manis itself failed; 126 when the
command cannot be executed; 127 when it is not found; 128+n when signal n ended it. Every other command
exits with 1 after an error, and with 125 after an unknown flag.

Environment: `+"`MANIS_ROOT`, `MANIS_RUN`, `MANIS_CONFIG`"+` move the directories of data, sockets and configuration;
`+"`MANIS_GUEST`"+` is the directory of the guest image; `+"`NO_COLOR`"+` turns colours off; `+"`OTEL_EXPORTER_OTLP_ENDPOINT`"+`
sends the spans of each start to a collector; `+"`MANIS_POLICY`"+` names the file of the operator's policy.

`)
	io.WriteString(w, differences)
	fmt.Fprintf(w, `
## Filters

| command | keys of `+"`--filter`"+` |
|---|---|
| ps | %s |
| images | %s |
| volume ls | %s |
| container prune, image prune | %s |
| volume prune | %s |

Values of one key are alternatives, keys are added up, and of labels all must match.

## Commands

`, keys(psFilters), keys(imageFilters), keys(volumeFilters), keys(pruneFilters), keys(volumePruneFilters))
	groups := []string{groupCommon, groupManage, groupOther}
	for _, g := range groups {
		var names []string
		for _, cmd := range root.Commands() {
			if cmd.Annotations["group"] == g {
				names = append(names, fmt.Sprintf("[%s](#%s)", cmd.Name(), strings.ReplaceAll(cmd.CommandPath(), " ", "-")))
			}
		}
		fmt.Fprintf(w, "**%s:** %s\n\n", g, strings.Join(names, ", "))
	}
	fmt.Fprint(w, "Global options:\n\n")
	flagTable(w, root.PersistentFlags())
	for _, cmd := range root.Commands() {
		if cmd.Annotations["group"] == "" {
			continue
		}
		referenceOf(w, cmd)
	}
}

func referenceOf(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(w, "\n## %s\n\n", cmd.CommandPath())
	about := cmd.Long
	if about == "" {
		about = cmd.Short
	}
	fmt.Fprintf(w, "%s\n\n```\n%s\n```\n", strings.TrimSpace(about), cmd.UseLine())
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(w, "\nAlso: `%s`\n", strings.Join(cmd.Aliases, "`, `"))
	}
	if cmd.Example != "" {
		fmt.Fprintf(w, "\n```\n%s\n```\n", strings.TrimRight(cmd.Example, "\n"))
	}
	// A noun's commands are the short ones under another name: named, and only
	// those described that have no short form.
	if cmd.HasAvailableSubCommands() {
		fmt.Fprint(w, "\n| command | |\n|---|---|\n")
		for _, sub := range cmd.Commands() {
			fmt.Fprintf(w, "| `%s` | %s |\n", sub.CommandPath(), sub.Short)
		}
		for _, sub := range cmd.Commands() {
			if cmd.Name() == "volume" || cmd.Name() == "system" && sub.Name() == "df" || sub.Name() == "prune" && cmd.Name() != "system" {
				referenceOf(w, sub)
			}
		}
		return
	}
	if flags := ownFlags(cmd); flags.HasAvailableFlags() {
		fmt.Fprintln(w)
		flagTable(w, flags)
	}
}

func flagTable(w io.Writer, flags *pflag.FlagSet) {
	fmt.Fprint(w, "| option | default | |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "`--" + f.Name
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		kind, usage := pflag.UnquoteUsage(f)
		switch {
		case kind != "" && f.NoOptDefVal != "":
			name += "[=" + kind + "]"
		case kind != "":
			name += " " + kind
		}
		def := f.DefValue
		switch def {
		case "false", "0", "[]", "", "0s":
			def = ""
		default:
			def = "`" + def + "`"
		}
		fmt.Fprintf(w, "| %s` | %s | %s |\n", name, def, strings.ReplaceAll(usage, "|", "\\|"))
	})
}
