package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"manis/bundle"
	"manis/cli/declare"
	"manis/policy"
)

func (a *app) policyCommand() *cobra.Command {
	return a.noun("policy", "Show what the operator's policy allows", a.policyCheckCommand(), a.policyShowCommand())
}

// noPolicy is what both commands say without a file.
func (a *app) noPolicy() error {
	places, err := a.places()
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "No policy: %s is not there, so everything is allowed.\n", places.Policy())
	return nil
}

func (a *app) policyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show every rule of the policy in force, and where it comes from",
		Args:  needs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			p, err := a.operator()
			if err != nil {
				return err
			}
			if p == nil {
				return a.noPolicy()
			}
			fmt.Fprintf(a.out, "%s, profile %s\n", p.File, p.Profile)
			return p.Show(a.out)
		},
	}
}

func (a *app) policyCheckCommand() *cobra.Command {
	f := new(declare.Flags)
	var from string
	cmd := &cobra.Command{
		Use:   "check [OPTIONS OF RUN] IMAGE [COMMAND] [ARG...]",
		Short: "Say what the policy would decide about a run, and by which rules",
		Long:  "Say what the policy would decide about a run with these options, and by which rules.\nNothing is pulled or started: of an image that is not here the signatures are not looked at.\nThe exit code is 125 where run would be refused.",
		Example: `  manis policy check -v /srv/data:/data:ro --user 1000 docker.io/library/alpine
  manis policy check --bundle ./bundle`,
		Args: func(cmd *cobra.Command, args []string) error {
			if from != "" {
				return needs(0, 0)(cmd, args)
			}
			return needs(1, -1)(cmd, args)
		},
		ValidArgsFunction: a.firstImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.operator()
			if err != nil {
				return fail(exitFailed, err)
			}
			if p == nil {
				return a.noPolicy()
			}
			var d *policy.Decision
			if from != "" {
				d, err = a.decideBundle(p, from)
			} else {
				d, err = a.decideRun(cmd, p, f, args)
			}
			if err != nil {
				return fail(exitFailed, err)
			}
			return a.tell(d)
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.Register(cmd.Flags())
	cmd.Flags().StringVarP(&from, "bundle", "b", "", "Directory of an OCI bundle, as an engine would hand it over, instead of an image")
	a.completeDeclaration(cmd)
	return cmd
}

// decideRun decides on what run would make.
func (a *app) decideRun(cmd *cobra.Command, p *policy.Policy, f *declare.Flags, args []string) (*policy.Decision, error) {
	host := declare.ThisHost()
	host.VolumesFrom = a.volumesFrom
	images, err := a.images()
	if err != nil {
		return nil, err
	}
	what := &declare.Image{Reference: args[0], Config: declare.ImageConfig{Cmd: []string{"true"}}}
	img, err := images.Resolve(args[0])
	if err == nil {
		what.ID = img.ID
		if what.Config, err = declare.ParseImageConfig(img.RawConfig); err != nil {
			return nil, err
		}
		if len(what.Config.Cmd)+len(what.Config.Entrypoint)+len(args[1:]) == 0 {
			what.Config.Cmd = []string{"true"}
		}
	}
	cfg, err := f.Config(what, args[1:], host)
	if err != nil {
		return nil, err
	}
	if img == nil {
		a.note("image %s is not here: what it declares itself, such as its user, is not looked at", args[0])
		return a.decideAbsent(p, images, cfg)
	}
	return a.decide(cmd.Context(), p, cfg, f.Insecure, true)
}

// tell prints a decision.
func (a *app) tell(d *policy.Decision) error {
	for _, f := range d.Findings {
		word := "allowed"
		if f.Refused {
			word = "REFUSED"
		}
		fmt.Fprintf(a.out, "%s  %s\n", word, f)
	}
	if d.Err() != nil {
		fmt.Fprintf(a.out, "It would be refused by %s.\n", d.File)
		return &status{exitFailed, nil}
	}
	fmt.Fprintf(a.out, "It would be allowed by %s.\n", d.File)
	return nil
}

// decideBundle decides on what an engine would hand over.
func (a *app) decideBundle(p *policy.Policy, dir string) (*policy.Decision, error) {
	b, err := bundle.Load(dir)
	if err != nil {
		return nil, err
	}
	plan, err := b.Plan(bundle.Environment{})
	if err != nil {
		return nil, err
	}
	r := b.Request(plan, policy.Engine{})
	r.Network = &policy.Network{Mode: "namespace"}
	if b.Spec.Annotations["manis.network"] == "user" && plan.Net == (bundle.Namespace{}) {
		r.Network.Mode = "user"
	}
	if r.Network.Egress, err = b.Egress(); err != nil {
		return nil, err
	}
	return p.Decide(r), nil
}
