package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"manis/attest"
	"manis/audit"
	"manis/container"
	"manis/monitor"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Hand out and verify what a confidential container did",
		Args:  needs(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.auditBundleCommand(), a.deciding(a.auditVerifyCommand()), a.deciding(a.auditReportCommand()), a.auditEnterCommand(), a.auditLedgerCommand(), a.auditWitnessCommand())
	return cmd
}

func (a *app) auditBundleCommand() *cobra.Command {
	var output string
	var pod bool
	var withhold bool
	cmd := &cobra.Command{
		Use:   "bundle [OPTIONS] CONTAINER | bundle [OPTIONS] --pod SANDBOX",
		Short: "Write the audit bundle of a confidential container that has ended, or of a pod as far as it has come",
		Args:  needs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			read := a.containerBundle
			if pod {
				read = a.podBundle
			}
			b, err := read(args[0])
			if err != nil {
				return err
			}
			if withhold {
				if b, err = withheld(b); err != nil {
					return err
				}
			}
			return a.put(output, b)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	cmd.Flags().BoolVar(&pod, "pod", false, "The argument is the id of a pod's sandbox (crictl pods)")
	cmd.Flags().BoolVar(&withhold, "withhold", false, "Leave out the texts that quote requests, and with them what personal data these have; commitments stay")
	return cmd
}

// containerBundle reads the bundle of a container.
func (a *app) containerBundle(name string) ([]byte, error) {
	c, err := a.container(name)
	if err != nil {
		return nil, err
	}
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	if cfg.Class != container.Confidential {
		return nil, fmt.Errorf("container %s is not of the class confidential", name)
	}
	b, err := os.ReadFile(filepath.Join(c.Dir(), monitor.BundleFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %s has no audit bundle: it has not ended yet, or its machine never attested", name)
	}
	return b, err
}

// podBundle reads the bundle of a pod whose sandbox has an id that begins so.
func (a *app) podBundle(id string) ([]byte, error) {
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(places.Audit(), "*.json"))
	if err != nil {
		return nil, err
	}
	files = slices.DeleteFunc(files, func(name string) bool { return !strings.HasPrefix(filepath.Base(name), id) })
	switch {
	case id == "" || len(files) == 0:
		return nil, fmt.Errorf("there is no audit bundle of a pod %q", id)
	case len(files) > 1:
		return nil, fmt.Errorf("there are %d audit bundles of pods %s...: give more of the id", len(files), id)
	}
	return os.ReadFile(files[0])
}

// withheld is a bundle without the texts that its events are committed to.
func withheld(b []byte) ([]byte, error) {
	bundle, err := audit.Parse(b)
	if err != nil {
		return nil, err
	}
	if err := audit.Withhold(bundle.Entries); err != nil {
		return nil, err
	}
	return json.Marshal(bundle)
}

// expectFlags are what an auditor brings.
type expectFlags struct{ owner, reference, log, witness, since string }

func (f *expectFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.owner, "owner-key", "", "The owner's public key")
	fs.StringVar(&f.reference, "reference", "", "Reference values of the machine (manis trust measure)")
	fs.StringVar(&f.log, "log-key", "", "Public key of the ledger that the bundle has to be in")
	fs.StringVar(&f.witness, "witness-key", "", "Key of the witness that has to have signed the ledger's checkpoint")
	fs.StringVar(&f.since, "since", "", "An older checkpoint of the ledger, which it has to continue")
}

// read reads the files that the flags name; what they do not name is not checked.
func (f *expectFlags) read() (audit.Expect, error) {
	var expect audit.Expect
	var err error
	if f.owner != "" {
		if expect.Owner, err = readPublicKey(f.owner); err != nil {
			return expect, err
		}
	}
	if f.reference != "" {
		if expect.Reference, err = attest.ReadReference(f.reference); err != nil {
			return expect, err
		}
	}
	if f.log == "" && (f.witness != "" || f.since != "") {
		return expect, errors.New("--witness-key and --since are about a ledger: --log-key says which")
	}
	expect.Log, expect.Witness, expect.Since, err = readLedgerKeys(f.log, f.witness, f.since)
	return expect, err
}

// readBundle reads a file of at most a bundle's size, and what more it has is noticed as that.
func readBundle(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, audit.MaxBundle+1))
	if err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	return b, nil
}

func (a *app) auditVerifyCommand() *cobra.Command {
	f := new(expectFlags)
	cmd := &cobra.Command{
		Use:     "verify --owner-key FILE --reference FILE BUNDLE",
		Short:   "Check offline that a run was what its manifest says",
		Example: `  manis audit verify --owner-key owner.pub --reference reference.json bundle.json`,
		Args:    needs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			expect, err := f.read()
			if err != nil {
				return err
			}
			b, err := readBundle(args[0])
			if err != nil {
				return err
			}
			examined := audit.Examine(b, expect)
			a.printReport(examined)
			if err := examined.Err(); err != nil {
				return err
			}
			fmt.Fprintln(a.out, "verified")
			return nil
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (a *app) auditReportCommand() *cobra.Command {
	var output string
	f := new(expectFlags)
	cmd := &cobra.Command{
		Use:   "report --owner-key FILE --reference FILE [OPTIONS] BUNDLE",
		Short: "Write an auditor's report of a bundle, as one page of HTML",
		Long: `Writes what a bundle shows, check by check, and which control objectives that supports. There is a report
of a bundle that is refused, too; the exit status is that of manis audit verify.`,
		Example: `  manis audit report --owner-key owner.pub --reference reference.json -o report.html bundle.json`,
		Args:    needs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			expect, err := f.read()
			if err != nil {
				return err
			}
			b, err := readBundle(args[0])
			if err != nil {
				return err
			}
			examined := audit.Examine(b, expect)
			var page bytes.Buffer
			if err := a.evidence.Report(&page, examined); err != nil {
				return err
			}
			if err := a.put(output, page.Bytes()); err != nil {
				return err
			}
			return examined.Err()
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}

// printReport prints what was verified.
func (a *app) printReport(r *audit.Report) {
	if r.Result == nil {
		return
	}
	fmt.Fprintf(a.out, "hardware: %s\n", r.Result.Hardware)
	if r.Result.FirmwareKnown {
		fmt.Fprintf(a.out, "firmware: %s, the reference's\n", r.Result.Firmware)
	} else {
		fmt.Fprintf(a.out, "firmware: %s, which the reference values do not name\n", r.Result.Firmware)
	}
	switch c := r.Checkpoint; {
	case !r.Passed(audit.CheckInclusion):
		fmt.Fprintln(a.out, "ledger: not shown to be in one, so it could have been kept back, or be one of several of the same run")
	case c.Cosigned.IsZero():
		fmt.Fprintf(a.out, "ledger: %s, %d entries, without a witness\n", c.Origin, c.Size)
	default:
		fmt.Fprintf(a.out, "ledger: %s, %d entries, seen by the witness at %s\n", c.Origin, c.Size, c.Cosigned.Format(time.RFC3339))
	}
	for _, e := range r.Events {
		fmt.Fprintf(a.out, "%d %s", e.Number, e.Kind)
		for _, key := range slices.Sorted(maps.Keys(e.What)) {
			fmt.Fprintf(a.out, " %s=%q", key, e.What[key])
		}
		for _, key := range e.Withheld {
			fmt.Fprintf(a.out, " %s=(withheld)", key)
		}
		fmt.Fprintln(a.out)
	}
}

// firmwareOf is the firmware's value in the evidence of an audit bundle that the other reference values verify.
func firmwareOf(path string, r *attest.Reference) (string, error) {
	b, err := readBundle(path)
	if err != nil {
		return "", err
	}
	bundle, err := audit.Parse(b)
	if err != nil {
		return "", err
	}
	e, err := attest.Parse(bundle.Evidence)
	if err != nil {
		return "", err
	}
	result, err := attest.Verify(e, r)
	if err != nil {
		return "", err
	}
	return result.Firmware, nil
}
