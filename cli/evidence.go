package cli

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"manis/audit"
	"manis/broker"
	"manis/broker/facts"
)

// Evidence is what only those need who decide on evidence, brokers and auditors. It is linked by a program of its own, manis-trust:
// in manis, of which several processes are started with each container, it would make each of these starts 4 ms longer. Where manis is
// asked for these commands it becomes that program.
type Evidence struct {
	// Rules reads an owner's rules for a broker.
	Rules func(file []byte) (facts.Rules, error)
	// Report writes an auditor's report as HTML.
	Report func(w io.Writer, r *audit.Report) error
	// KBS answers clients of Confidential Containers' key broker in a broker's place; key is the broker's.
	KBS func(b *broker.Broker, key ed25519.PrivateKey) http.Handler
}

// evidenceProgram is beside manis.
const evidenceProgram = "manis-trust"

// deciding has a command executed by the program that can.
func (a *app) deciding(cmd *cobra.Command) *cobra.Command {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.evidence != nil {
			return run(cmd, args)
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the program %s: %w", evidenceProgram, err)
		}
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		path := filepath.Join(filepath.Dir(self), evidenceProgram)
		err = unix.Exec(path, append([]string{evidenceProgram}, os.Args[1:]...), os.Environ())
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s is done by the program %s, which is not at %s: make build and make install put it beside manis", cmd.CommandPath(), evidenceProgram, path)
		}
		return fmt.Errorf("start %s: %w", path, err)
	}
	return cmd
}
