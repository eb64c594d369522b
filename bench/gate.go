package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// gate is the comparison of starts with those that were accepted.
type gate struct {
	path   string // of the accepted ratios
	rounds int    // of the first attempt; the second takes half as many again
}

// run measures and compares. It returns an error when a start-up has become slower.
func (g *gate) run(ctx context.Context, b *bench, out io.Writer) error {
	accepted, err := readAccepted(g.path)
	if err != nil {
		return err
	}
	subjects, release := b.startSubjects(ctx)
	defer release()
	// Others than those that ratios are formed of would only take time.
	subjects = slices.DeleteFunc(subjects, func(s subject) bool { return !ours(s.name()) && !slices.Contains(peersOfRatios, s.name()) })
	if err := b.warmUp(ctx, subjects); err != nil {
		return err
	}
	verdicts, err := g.attempt(ctx, b, subjects, g.rounds, accepted.Ratios)
	if err != nil {
		return err
	}
	if suspects := doubted(verdicts); len(suspects) > 0 {
		show(out, verdicts)
		fmt.Fprintln(out, "once more, with more rounds:")
		subjects = slices.DeleteFunc(subjects, func(s subject) bool { return !slices.Contains(suspects, s.name()) })
		kept := slices.DeleteFunc(slices.Clone(accepted.Ratios), func(r Ratio) bool { return !slices.Contains(suspects, r.Of) || !slices.Contains(suspects, r.To) })
		if verdicts, err = g.attempt(ctx, b, subjects, (3*g.rounds+1)/2, kept); err != nil {
			return err
		}
	}
	show(out, verdicts)
	if c := median(b.Contention); c > maxContention {
		fmt.Fprintf(out, "  others use this machine: computations take %s times as long as on an idle one\n", number(c))
	}
	for _, v := range verdicts {
		if v.kind == worse {
			return fmt.Errorf("start-up has become slower. If that is meant to be, make bench-accept on an idle machine and commit %s. Accepted were ratios of %s with %s, %s; this is %s, %s",
				g.path, accepted.Date.Format(time.DateOnly), accepted.Host.CPU, accepted.Host.QEMU, b.Host.CPU, b.Host.QEMU)
		}
	}
	return nil
}

// attempt measures the subjects, independently of attempts before, and compares.
func (g *gate) attempt(ctx context.Context, b *bench, subjects []subject, rounds int, accepted []Ratio) ([]verdict, error) {
	b.forget()
	if err := b.starts(ctx, subjects, rounds); err != nil {
		return nil, err
	}
	reasons := make(map[string]string)
	for _, s := range b.Skipped {
		reasons[s.Subject] = s.Reason
	}
	return compare(b.ratios(), accepted, median(b.Contention), reasons), nil
}

// doubted are the subjects of ratios that have to be measured again.
func doubted(verdicts []verdict) []string {
	var names []string
	for _, v := range verdicts {
		if v.kind == worse || v.kind == undecided {
			names = append(names, v.before.Of, v.before.To)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func show(out io.Writer, verdicts []verdict) {
	for _, v := range verdicts {
		fmt.Fprintln(out, " ", v)
	}
}

// accept measures and writes what is measured to be the accepted ratios.
func (g *gate) accept(ctx context.Context, b *bench, out io.Writer) error {
	if err := b.start(ctx); err != nil {
		return err
	}
	if c := median(b.Contention); c > maxContention {
		return fmt.Errorf("others use this machine: computations take %.2f times as long as on an idle one, and nothing is accepted above %.1f", c, maxContention)
	}
	ratios := b.ratios()
	if len(ratios) == 0 {
		return errors.New("no ratio could be measured")
	}
	for _, s := range b.Skipped {
		fmt.Fprintf(out, "  not measured: %s: %s\n", s.Subject, s.Reason)
	}
	for _, r := range ratios {
		fmt.Fprintf(out, "  %s/%s: %s (%s to %s)\n", r.Of, r.To, number(r.Median), number(r.Low), number(r.High))
	}
	return (&Accepted{Date: b.Date, Host: b.Host, Ratios: ratios}).write(g.path)
}
