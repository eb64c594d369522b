package node

import (
	"context"
	"slices"
	"time"
)

// Keeper is the process that a DaemonSet has on each node.
type Keeper struct {
	Host
	// Release is the directory of what is to be installed, and Version its version.
	Release, Version string
	Cluster          *Cluster
	// Node is the node's name, Fleet the DaemonSet.
	Node  string
	Fleet Fleet
	// Every is how long it is between two looks.
	Every time.Duration
	// Leave bounds the end, of which Kubernetes wants to be done in terminationGracePeriodSeconds.
	Leave time.Duration
}

// Keep installs Manis and says so on the node, looks again and again whether all is well, and repairs it. When ctx ends, it leaves
// everything to its successor, or takes it away if the DaemonSet is being deleted.
func (k *Keeper) Keep(ctx context.Context) error {
	said := []string{"nothing yet"}
	for ctx.Err() == nil {
		name, problems := k.look(ctx)
		if ctx.Err() != nil {
			break
		}
		if name == "" {
			name = "unknown"
		}
		// Again each time: a node that registers anew comes without its labels.
		if err := k.Cluster.Mark(ctx, k.Node, name, problems); err != nil {
			k.Log("%v", err)
		} else if !slices.Equal(said, problems) {
			k.say(name, problems)
			said = problems
		}
		select {
		case <-ctx.Done():
		case <-time.After(k.Every):
		}
	}
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.Leave)
	defer cancel()
	return k.leave(leave)
}

func (k *Keeper) look(ctx context.Context) (name string, problems []string) {
	name, err := k.Install(ctx, k.Release, k.Version)
	if err != nil {
		problems = append(problems, err.Error())
	}
	status, err := k.Status(ctx)
	if err != nil {
		return name, append(problems, err.Error())
	}
	for _, p := range status.Problems {
		if !slices.Contains(problems, p) {
			problems = append(problems, p)
		}
	}
	return name, problems
}

func (k *Keeper) say(name string, problems []string) {
	if len(problems) == 0 {
		k.Log("the node is ready for pods on Manis, with %s", name)
	}
	for _, p := range problems {
		k.Log("the node is not ready: %s", p)
	}
}

func (k *Keeper) leave(ctx context.Context) error {
	leaving, err := k.Cluster.Leaving(ctx, k.Fleet)
	if err != nil {
		k.Log("whether Manis is to be removed cannot be found out, so it stays: %v", err)
		return nil
	}
	if !leaving {
		k.Log("Manis stays on the node, for the next one")
		return nil
	}
	// No more pods from now on.
	if err := k.Cluster.Mark(ctx, k.Node, "", nil); err != nil {
		k.Log("%v", err)
	}
	return k.Remove(ctx, true)
}
