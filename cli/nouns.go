package cli

import "github.com/spf13/cobra"

// The commands of docker's nouns are those without a noun, under their own names.

func renamed(cmd *cobra.Command, name string, aliases ...string) *cobra.Command {
	cmd.Use = name + cmd.Use[len(cmd.Name()):]
	cmd.Aliases = aliases
	return cmd
}

func (a *app) containerCommand() *cobra.Command {
	return a.noun("container", "Manage containers",
		a.attachCommand(), a.cpCommand(), a.createCommand(), a.execCommand(),
		a.inspectOne("container", "Display detailed information on one or more containers", a.containerNames(anyStatus)),
		a.killCommand(), a.logsCommand(), renamed(a.psCommand(), "ls", "list", "ps"), a.pauseCommand(), a.portCommand(),
		a.containerPruneCommand(), a.renameCommand(), a.restartCommand(), a.rmCommand(), a.runCommand(), a.startCommand(),
		a.statsCommand(), a.stopCommand(), a.topCommand(), a.unpauseCommand(), a.updateCommand(), a.waitCommand())
}

func (a *app) imageCommand() *cobra.Command {
	return a.noun("image", "Manage images",
		a.historyCommand(),
		a.inspectOne("image", "Display detailed information on one or more images", a.imageNames),
		a.loadCommand(), renamed(a.imagesCommand(), "ls", "list"), a.imagePruneCommand(), a.pullCommand(),
		renamed(a.rmiCommand(), "rm", "remove"), a.saveCommand(), a.tagCommand())
}

func (a *app) systemCommand() *cobra.Command {
	return a.noun("system", "Manage Manis", a.dfCommand(), a.infoCommand(), a.systemPruneCommand())
}
