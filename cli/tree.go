package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"manis/cli/terminal"
)

// entry is one command of the tree. Commands are built when they are needed:
// one that runs pays for its own flags only.
type entry struct {
	name  string
	group string // of the help; "" hides
	build func(a *app) *cobra.Command
}

// Groups of the help, in order.
const (
	groupCommon = "Common Commands"
	groupManage = "Management Commands"
	groupOther  = "Commands"
)

func commands() []entry {
	return []entry{
		{"run", groupCommon, (*app).runCommand},
		{"exec", groupCommon, (*app).execCommand},
		{"ps", groupCommon, (*app).psCommand},
		{"logs", groupCommon, (*app).logsCommand},
		{"pull", groupCommon, (*app).pullCommand},
		{"images", groupCommon, (*app).imagesCommand},
		{"info", groupCommon, (*app).infoCommand},
		{"doctor", groupCommon, (*app).doctorCommand},
		{"version", groupCommon, (*app).versionCommand},

		{"audit", groupManage, (*app).auditCommand},
		{"container", groupManage, (*app).containerCommand},
		{"image", groupManage, (*app).imageCommand},
		{"policy", groupManage, (*app).policyCommand},
		{"pool", groupManage, (*app).poolCommand},
		{"snapshot", groupManage, (*app).snapshotCommand},
		{"template", groupManage, (*app).templateCommand},
		{"trust", groupManage, (*app).trustCommand},
		{"volume", groupManage, (*app).volumeCommand},
		{"system", groupManage, (*app).systemCommand},

		{"attach", groupOther, (*app).attachCommand},
		{"checkpoint", groupOther, (*app).checkpointCommand},
		{"completion", groupOther, (*app).completionCommand},
		{"cp", groupOther, (*app).cpCommand},
		{"create", groupOther, (*app).createCommand},
		{"history", groupOther, (*app).historyCommand},
		{"inspect", groupOther, (*app).inspectCommand},
		{"kill", groupOther, (*app).killCommand},
		{"load", groupOther, (*app).loadCommand},
		{"pause", groupOther, (*app).pauseCommand},
		{"port", groupOther, (*app).portCommand},
		{"prune", groupOther, (*app).pruneCommand},
		{"rename", groupOther, (*app).renameCommand},
		{"restart", groupOther, (*app).restartCommand},
		{"restore", groupOther, (*app).restoreCommand},
		{"rm", groupOther, (*app).rmCommand},
		{"rmi", groupOther, (*app).rmiCommand},
		{"save", groupOther, (*app).saveCommand},
		{"start", groupOther, (*app).startCommand},
		{"stats", groupOther, (*app).statsCommand},
		{"stop", groupOther, (*app).stopCommand},
		{"tag", groupOther, (*app).tagCommand},
		{"top", groupOther, (*app).topCommand},
		{"unpause", groupOther, (*app).unpauseCommand},
		{"update", groupOther, (*app).updateCommand},
		{"wait", groupOther, (*app).waitCommand},

		{"docs", "", (*app).docsCommand},
	}
}

// tree builds the command tree, or as much of it as args need.
func (a *app) tree(args []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "manis [OPTIONS] COMMAND [ARG...]",
		Short: "Run containers, each in a virtual machine of its own",
		// Errors are reported in one place.
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableAutoGenTag:     true,
		DisableFlagsInUseLine: true,
		Version:               versionLine(),
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE:                  group,
		Args:                  cobra.ArbitraryArgs,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { a.help(a.out, cmd) })
	root.SetUsageFunc(func(cmd *cobra.Command) error { a.help(a.err, cmd); return nil })
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fail(exitFailed, &usageError{err}) })
	root.PersistentFlags().StringVar(&a.root, "root", "", "Directory of containers, images and volumes (default $MANIS_ROOT or the user's data directory)")
	root.PersistentFlags().StringVar(&a.runRoot, "run-root", "", "Directory of control sockets (default $MANIS_RUN or the user's runtime directory)")
	root.PersistentFlags().Bool("help", false, "Print usage")
	root.PersistentFlags().MarkHidden("help")
	root.Flags().BoolP("version", "v", false, "Print version information and quit")

	if len(args) > 0 {
		for _, e := range commands() {
			if e.name == args[0] {
				a.add(root, e)
				return root
			}
		}
	}
	for _, e := range commands() {
		a.add(root, e)
	}
	root.SetHelpCommand(&cobra.Command{
		Use: "help [COMMAND]", Short: "Show help of a command", Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := root.Find(args)
			if err != nil || target == nil || len(rest) > 0 && !target.Runnable() {
				return unknown(root, args)
			}
			a.help(a.out, target)
			return nil
		},
	})
	return root
}

func (a *app) add(parent *cobra.Command, e entry) {
	cmd := e.build(a)
	cmd.Hidden = cmd.Hidden || e.group == ""
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	cmd.Annotations["group"] = e.group
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().SortFlags = true
	parent.AddCommand(cmd)
}

// noun makes a command that only holds others, such as `manis container`.
func (a *app) noun(name, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name + " COMMAND", Short: short, RunE: group, Args: cobra.ArbitraryArgs}
	for _, sub := range subs {
		sub.DisableFlagsInUseLine = true
		cmd.AddCommand(sub)
	}
	return cmd
}

// group is the body of a command that only holds others.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknown(cmd, args)
}

func unknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return &usageError{errors.New("unknown command")}
	}
	text := fmt.Sprintf("unknown command: %s %s", cmd.CommandPath(), args[0])
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += fmt.Sprintf(" (did you mean %s?)", strings.Join(near, " or "))
	}
	return &usageError{errors.New(text)}
}

// needs returns a check for the number of arguments, with docker's words; most < 0
// is no limit.
func needs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		count := func(n int) string {
			if n == 1 {
				return "1 argument"
			}
			return fmt.Sprintf("%d arguments", n)
		}
		var want string
		switch {
		case most == 0:
			want = "accepts no arguments"
		case least == most:
			want = "requires " + count(least)
		case most < 0:
			want = "requires at least " + count(least)
		case len(args) > most:
			want = "requires at most " + count(most)
		default:
			want = fmt.Sprintf("requires at least %d and at most %s", least, count(most))
		}
		return &usageError{fmt.Errorf("'%s' %s", cmd.CommandPath(), want)}
	}
}

// help prints a command's usage.
func (a *app) help(w io.Writer, cmd *cobra.Command) {
	paint := terminal.Paints(a.out)
	heading := func(s string) string { return paint.Paint(terminal.Bold, s) }
	_, columns := terminal.Size(a.out)
	width := min(int(columns), 120)

	fmt.Fprintf(w, "%s  %s\n", heading("Usage:"), cmd.UseLine())
	about := cmd.Long
	if about == "" {
		about = cmd.Short
	}
	if about != "" {
		fmt.Fprintf(w, "\n%s\n", about)
	}
	if len(cmd.Aliases) > 0 {
		names := []string{cmd.CommandPath()}
		for _, alias := range cmd.Aliases {
			names = append(names, cmd.Parent().CommandPath()+" "+alias)
		}
		fmt.Fprintf(w, "\n%s\n  %s\n", heading("Aliases:"), strings.Join(names, ", "))
	}
	if cmd.Example != "" {
		fmt.Fprintf(w, "\n%s\n%s\n", heading("Examples:"), cmd.Example)
	}
	groups := []string{"Commands"}
	if !cmd.HasParent() {
		groups = []string{groupCommon, groupManage, groupOther}
	}
	for _, g := range groups {
		var subs []*cobra.Command
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() && (cmd.HasParent() || sub.Annotations["group"] == g) {
				subs = append(subs, sub)
			}
		}
		if len(subs) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", heading(g+":"))
		for _, sub := range subs {
			fmt.Fprintf(w, "  %-11s %s\n", sub.Name(), sub.Short)
		}
	}
	if flags := ownFlags(cmd); flags.HasAvailableFlags() {
		fmt.Fprintf(w, "\n%s\n%s", heading("Options:"), flags.FlagUsagesWrapped(width))
	}
	if cmd.HasParent() {
		global := pflag.NewFlagSet("", pflag.ContinueOnError)
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				global.AddFlag(f)
			}
		})
		if global.HasAvailableFlags() {
			fmt.Fprintf(w, "\n%s\n%s", heading("Global Options:"), global.FlagUsagesWrapped(width))
		}
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\nRun '%s COMMAND --help' for more information on a command.\n", cmd.CommandPath())
	}
}

// ownFlags are a command's flags without those of its parents.
func ownFlags(cmd *cobra.Command) *pflag.FlagSet {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			flags.AddFlag(f)
		}
	})
	return flags
}
