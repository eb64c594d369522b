package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/bundle"
	"manis/policy"
)

// permit refuses a container that the operator's policy does not allow. It returns lists of rules for what it
// connects to, each of which has to allow it.
func (a *app) permit(b *bundle.Bundle, plan *bundle.Plan, id string, userNetwork bool) ([][]string, error) {
	asked, err := b.Egress()
	if err != nil {
		return nil, err
	}
	p, err := policy.Load(a.places.Policy())
	if err != nil {
		return nil, err
	}
	r := b.Request(plan, policy.Engine{ID: id})
	r.Network = &policy.Network{Mode: "namespace", Egress: asked}
	if userNetwork {
		r.Network.Mode = "user"
	}
	if err := bundle.Check(p, r); err != nil {
		return nil, err
	}
	var lists [][]string
	for _, l := range p.EgressOf(asked) {
		lists = append(lists, l.Texts())
	}
	return lists, nil
}

// permitExec refuses a further process that the operator's policy does not allow.
func (a *app) permitExec(process *specs.Process) error {
	p, err := policy.Load(a.places.Policy())
	if err != nil {
		return err
	}
	return p.Check(bundle.RequestExec(process))
}
