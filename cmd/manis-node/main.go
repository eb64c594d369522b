// Command manis-node installs Manis on a node of Kubernetes: a DaemonSet runs it, and whoever prepares nodes by hand may.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"manis/node"
	"manis/version"
)

const usage = `Usage:  manis-node VERB [OPTIONS] [-- ARGUMENTS]

Install Manis on a node of Kubernetes

Verbs:
  install   Bring this release to the node and have containerd know it
  remove    Take it away again, unless pods run on it
  status    Say what there is, as JSON; the exit code is 1 if pods could not be started
  keep      Install, label the node, and repair until the end (in a DaemonSet's pod)
  pool      Have manisd of the release that is installed run on the node, until the end (in a DaemonSet's pod); what
            comes after -- is manisd's
  retire    Delete the DaemonSet and wait until its pods have cleaned up

Options:
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "manis-node:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	h := node.Default()
	flags := pflag.NewFlagSet("manis-node", pflag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage, flags.FlagUsagesWrapped(120)) }
	flags.StringVar(&h.Root, "host-root", h.Root, "The node's root filesystem is mounted at `dir`")
	flags.StringVar(&h.Prefix, "prefix", h.Prefix, "Install below this `dir` of the node, which is Manis' own")
	flags.StringVar(&h.Config, "containerd-config", h.Config, "containerd's configuration `file` on the node")
	flags.StringVar(&h.DropIn, "drop-in", h.DropIn, "The `file` that is made for containerd to import")
	flags.StringVar(&h.Socket, "containerd-socket", h.Socket, "The `socket` at which containerd answers on the node")
	flags.StringVar(&h.Handler, "handler", h.Handler, "The runtime's `name` for containerd, which a RuntimeClass has as its handler")
	restart := flags.String("restart", strings.Join(h.Restart, " "), "The `command` on the node that restarts containerd, words separated by spaces")
	release := flags.String("release", "/", "This `dir` has the release, as make install lays it out")
	wait := flags.Duration("wait", 0, "How long remove waits for pods that run, and retire for the nodes (0: remove does not, retire without end)")
	set := flags.String("daemonset", "", "`NAMESPACE/NAME` of the DaemonSet, for keep and retire")
	name := flags.String("node-name", os.Getenv("NODE_NAME"), "The node's `name`, for keep")
	every := flags.Duration("every", time.Minute, "How often keep and pool look")
	leave := flags.Duration("leave", 100*time.Second, "How long keep may take to remove everything")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	verb, rest := flags.Arg(0), flags.Args()
	if at := flags.ArgsLenAtDash(); at >= 0 {
		verb, rest = "", rest[at:]
		if at == 1 {
			verb = flags.Arg(0)
		}
	} else {
		rest = rest[min(1, len(rest)):]
		if len(rest) > 0 {
			verb = ""
		}
	}
	if verb == "" || len(rest) > 0 && verb != "pool" {
		return errors.New("give one verb (see manis-node --help)")
	}
	h.Restart = strings.Fields(*restart)
	h.Log = func(format string, args ...any) { fmt.Fprintf(os.Stderr, "manis-node: "+format+"\n", args...) }
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	waiting := func() (context.Context, context.CancelFunc) {
		if *wait <= 0 {
			return context.WithCancel(ctx)
		}
		return context.WithTimeout(ctx, *wait)
	}
	switch verb {
	case "install":
		_, err := h.Install(ctx, *release, version.Version)
		return err
	case "remove":
		limited, cancel := waiting()
		defer cancel()
		return h.Remove(limited, *wait > 0)
	case "status":
		s, err := h.Status(ctx)
		if err != nil {
			return err
		}
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		if err := out.Encode(s); err != nil {
			return err
		}
		if len(s.Problems) > 0 {
			return errors.New("pods cannot be started on this node")
		}
		return nil
	case "pool":
		if *every <= 0 {
			return errors.New("pool needs an --every that is not 0")
		}
		p := node.Pool{Host: h, Args: rest, Every: *every}
		return p.Run(ctx)
	case "keep", "retire":
		fleet, err := node.ParseFleet(*set)
		if err != nil {
			return err
		}
		cluster, err := node.FindCluster()
		if err != nil {
			return err
		}
		if verb == "retire" {
			limited, cancel := waiting()
			defer cancel()
			return cluster.Retire(limited, fleet)
		}
		if *name == "" || *every <= 0 || *leave <= 0 {
			return errors.New("keep needs --node-name, and --every and --leave that are not 0")
		}
		k := node.Keeper{Host: h, Release: *release, Version: version.Version, Cluster: cluster, Node: *name, Fleet: fleet, Every: *every, Leave: *leave}
		return k.Keep(ctx)
	default:
		return fmt.Errorf("%q is no verb (see manis-node --help)", verb)
	}
}
