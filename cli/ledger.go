package cli

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"manis/audit"
	"manis/audit/ledger"
	"manis/audit/witness"
	"manis/cli/declare"
	"manis/trust"
)

// ledgerFlags are of who writes to a ledger.
type ledgerFlags struct{ dir, witnessURL, witnessKey string }

func (f *ledgerFlags) registerWitness(fs *pflag.FlagSet) {
	fs.StringVar(&f.witnessURL, "witness", "", "URL of a witness that has to sign the ledger's checkpoints")
	fs.StringVar(&f.witnessKey, "witness-key", "", "The witness's key")
}

// open opens the ledger, which is the caller's to close. The client is nil without a witness.
func (f *ledgerFlags) open(key ed25519.PrivateKey) (*ledger.Ledger, *witness.Client, error) {
	var client *witness.Client
	if (f.witnessURL == "") != (f.witnessKey == "") {
		return nil, nil, errors.New("--witness and --witness-key come together")
	}
	if f.witnessURL != "" {
		k, err := readWitnessKey(f.witnessKey)
		if err != nil {
			return nil, nil, err
		}
		client = &witness.Client{URL: f.witnessURL, Key: k}
	}
	l, err := ledger.Open(f.dir, key)
	return l, client, err
}

// readPublicKey reads a key that keygen has made.
func readPublicKey(path string) (ed25519.PublicKey, error) {
	der, err := declare.ReadPublicKey(path)
	if err != nil {
		return nil, err
	}
	return trust.ParseKey(der)
}

// readLogKey reads the public key of a ledger.
func readLogKey(path string) (*ledger.Key, error) {
	key, err := readPublicKey(path)
	if err != nil {
		return nil, err
	}
	return ledger.LogKey(key), nil
}

// readWitnessKey reads what keygen has made, or a witness's key as others write it, on one line.
func readWitnessKey(path string) (*ledger.Key, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the witness's key: %w", err)
	}
	if !strings.HasPrefix(string(b), "-----BEGIN") {
		return ledger.ParseWitnessKey(string(b))
	}
	key, err := readPublicKey(path)
	if err != nil {
		return nil, err
	}
	return ledger.WitnessKey(key), nil
}

// readLedgerKeys reads what an auditor knows of a ledger. A file that is not named is nil.
func readLedgerKeys(logPath, witnessPath, sincePath string) (log, by *ledger.Key, since []byte, err error) {
	if logPath != "" {
		if log, err = readLogKey(logPath); err != nil {
			return nil, nil, nil, err
		}
	}
	if witnessPath != "" {
		if by, err = readWitnessKey(witnessPath); err != nil {
			return nil, nil, nil, err
		}
	}
	if sincePath != "" {
		if since, err = os.ReadFile(sincePath); err != nil {
			return nil, nil, nil, fmt.Errorf("read the older checkpoint: %w", err)
		}
	}
	return log, by, since, nil
}

func (a *app) auditEnterCommand() *cobra.Command {
	var keyPath, output, sincePath string
	f := new(ledgerFlags)
	cmd := &cobra.Command{
		Use:   "enter --ledger DIR --key FILE [OPTIONS] BUNDLE",
		Short: "Enter a bundle into a ledger, and write it with the proof",
		Long: `Writes a commitment to the bundle into the ledger, which begins with the first one, has the ledger's checkpoint
signed by a witness if one is named, and writes the bundle with the proof that it is in the ledger. A bundle that is in the ledger already gets a new proof.`,
		Example: `  manis trust keygen log
  manis audit enter --ledger ledger --key log.key --witness http://127.0.0.1:7401 --witness-key witness.pub -o entered.json bundle.json`,
		Args: needs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.dir == "" {
				return errors.New("--ledger says in which directory the ledger is")
			}
			key, err := readPrivateKey(keyPath)
			if err != nil {
				return err
			}
			b, err := readBundle(args[0])
			if err != nil {
				return err
			}
			bundle, err := audit.Parse(b)
			if err != nil {
				return err
			}
			_, _, since, err := readLedgerKeys("", "", sincePath)
			if err != nil {
				return err
			}
			l, by, err := f.open(key)
			if err != nil {
				return err
			}
			defer l.Close()
			if since == nil {
				since = l.Checkpoint()
			}
			index, salt, err := bundle.Enter(l)
			if err != nil {
				return err
			}
			if by != nil {
				if _, err := by.Cosign(cmd.Context(), l); err != nil {
					return err
				}
			}
			proof, err := l.Prove(index, since)
			if err != nil {
				return err
			}
			bundle.Log = &audit.Logged{Salt: salt, Proof: *proof}
			if b, err = json.Marshal(bundle); err != nil {
				return err
			}
			return a.put(output, b)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.dir, "ledger", "", "The ledger's directory")
	fs.StringVar(&keyPath, "key", "", "The ledger's private key")
	f.registerWitness(fs)
	fs.StringVar(&sincePath, "since", "", "An older checkpoint to prove continuation from (the ledger's last one)")
	fs.StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}

func (a *app) auditLedgerCommand() *cobra.Command {
	var logPath, witnessPath, sincePath, output string
	cmd := &cobra.Command{
		Use:     "ledger --log-key FILE [OPTIONS] DIR",
		Short:   "Check a whole ledger, and that it continues an older checkpoint",
		Example: `  manis audit ledger --log-key log.pub --witness-key witness.pub --since kept.checkpoint ledger`,
		Args:    needs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			if logPath == "" {
				return errors.New("--log-key says whose ledger it should be")
			}
			log, by, since, err := readLedgerKeys(logPath, witnessPath, sincePath)
			if err != nil {
				return err
			}
			c, signed, err := ledger.Check(args[0], log, by, since)
			if err != nil {
				return err
			}
			if output != "" {
				if err := os.WriteFile(output, signed, 0o644); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(a.out, "%s: %d entries, root %s\n", c.Origin, c.Size, c.Root)
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&logPath, "log-key", "", "The ledger's public key")
	fs.StringVar(&witnessPath, "witness-key", "", "Key of the witness that has to have signed its checkpoint")
	fs.StringVar(&sincePath, "since", "", "An older checkpoint, which the ledger has to continue")
	fs.StringVarP(&output, "output", "o", "", "Keep the checkpoint in a file, for --since")
	return cmd
}

func (a *app) auditWitnessCommand() *cobra.Command {
	var keyPath, dir, listen string
	var logs []string
	cmd := &cobra.Command{
		Use:   "witness --key FILE --log-key FILE [OPTIONS]",
		Short: "Sign the checkpoints of ledgers that only grow, for others",
		Long: `A witness signs a checkpoint only if it continues the last one that it has signed. Run it elsewhere than the
ledgers, by somebody else. Its protocol is tlog-witness of C2SP.`,
		Example: `  manis trust keygen witness
  manis audit witness --key witness.key --log-key log.pub --log-key broker.pub --state witnessed`,
		Args: needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := readPrivateKey(keyPath)
			if err != nil {
				return err
			}
			var keys []*ledger.Key
			for _, path := range logs {
				k, err := readLogKey(path)
				if err != nil {
					return err
				}
				keys = append(keys, k)
			}
			w, err := witness.New(dir, key, keys...)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.err, w.Key())
			return a.serve(cmd.Context(), listen, w)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&keyPath, "key", "", "The witness's private key")
	fs.StringArrayVar(&logs, "log-key", nil, "Public key of a ledger to watch")
	fs.StringVar(&dir, "state", "witness", "Directory of what was signed: to lose it is to forget it")
	fs.StringVar(&listen, "listen", "127.0.0.1:7401", "Address to listen on")
	return cmd
}
