package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/bundle"
	"manis/policy"
)

// permit refuses a container that the operator's policy does not allow. It returns lists of rules for what it
// connects to, each of which has to allow it, and what was allowed of the host's files, as bundle.Permit does.
func (a *app) permit(b *bundle.Bundle, plan *bundle.Plan, id string, userNetwork bool) (egress [][]string, allowed *bundle.Allowed, err error) {
	asked, err := b.Egress()
	if err != nil {
		return nil, nil, err
	}
	p, err := policy.Load(a.places.Policy())
	if err != nil {
		return nil, nil, err
	}
	network := &policy.Network{Mode: "namespace", Egress: asked}
	if userNetwork {
		network.Mode = "user"
	}
	if allowed, err = b.Permit(p, plan, policy.Engine{ID: id}, network); err != nil {
		return nil, nil, err
	}
	for _, l := range p.EgressOf(asked) {
		egress = append(egress, l.Texts())
	}
	return egress, allowed, nil
}

// permitExec refuses a further process that the operator's policy does not allow.
func (a *app) permitExec(process *specs.Process) error {
	p, err := policy.Load(a.places.Policy())
	if err != nil {
		return err
	}
	return p.Check(bundle.RequestExec(process))
}
