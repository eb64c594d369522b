package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"manis/cli/declare"
	"manis/cli/terminal"
	"manis/container"
	"manis/image"
)

// Completion of a shell: names of what is there.

// ofStatus selects containers.
type ofStatus func(container.Status) bool

func anyStatus(container.Status) bool   { return true }
func isLive(s container.Status) bool    { return s.Live() }
func notLive(s container.Status) bool   { return !s.Live() }
func isRunning(s container.Status) bool { return s == container.Running }
func isPaused(s container.Status) bool  { return s == container.Paused }

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

func (a *app) containerNames(match ofStatus) completer {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		all, err := a.list()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, l := range all {
			if match(l.st.Status) {
				names = append(names, l.cfg.Name)
			}
		}
		return without(names, args), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) imageNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	images, err := a.images()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	all, err := images.List()
	var damaged *image.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	if damaged != nil {
		for _, d := range damaged.Images { // for rmi
			names = append(names, d.Names...)
		}
	}
	for _, img := range all {
		for _, n := range img.Names {
			names = append(names, n)
			if repo, ok := strings.CutSuffix(n, ":latest"); ok {
				names = append(names, repo)
			}
		}
	}
	return without(names, args), cobra.ShellCompDirectiveNoFileComp
}

// firstImage completes an image as the first argument and files after it.
func (a *app) firstImage(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.imageNames(cmd, args, start)
}

func (a *app) volumeNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	store, err := a.volumes(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	all, err := store.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, v := range all {
		names = append(names, v.Name)
	}
	return without(names, args), cobra.ShellCompDirectiveNoFileComp
}

// without leaves out what the line has already.
func without(names, used []string) []string {
	seen := make(map[string]bool)
	for _, u := range used {
		seen[u] = true
	}
	var rest []string
	for _, n := range names {
		if !seen[n] {
			rest = append(rest, n)
		}
	}
	return rest
}

// completeDeclaration adds the values that flags of run and create can have.
func (a *app) completeDeclaration(cmd *cobra.Command) {
	values := map[string][]string{
		"accel":      {"auto", "kvm", "tcg"},
		"boot":       {"auto", "template", "cold"},
		"pull":       {"always", "missing", "never"},
		"network":    {"user", "none"},
		"restart":    {"no", "always", "on-failure", "unless-stopped"},
		"log-driver": {"json-file", "none"},
		"cap-add":    declare.Capabilities(),
		"cap-drop":   declare.Capabilities(),
		"attach":     {"stdin", "stdout", "stderr"},
	}
	for name, list := range values {
		cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp))
	}
	cmd.RegisterFlagCompletionFunc("volumes-from", a.containerNames(anyStatus))
	cmd.RegisterFlagCompletionFunc("volume", func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if strings.ContainsAny(start, "/.") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names, directive := a.volumeNames(cmd, nil, start)
		return names, directive | cobra.ShellCompDirectiveNoSpace
	})
}

func isTerminal(f *os.File) bool { return terminal.Is(f) }

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Generate the completion script for a shell",
		Long: `Generate the completion script for a shell. For bash, for example:

  manis completion bash > ~/.local/share/bash-completion/completions/manis`,
		Args:                  needs(1, 1),
		ValidArgs:             []string{"bash", "zsh", "fish", "powershell"},
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			}
			return &usageError{fmt.Errorf("unknown shell %q: there are bash, zsh, fish and powershell", args[0])}
		},
	}
}
