package cli

import (
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"manis/attest/tpm/tpmtest"
	"manis/audit/audittest"
	"manis/audit/witness"
	"manis/trust"
)

// TestAuditCommands: a bundle is entered into a ledger with a witness, verified and reported offline; what is not in the ledger,
// and a ledger that was cut, is refused.
func TestAuditCommands(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, content []byte) {
		t.Helper()
		check(t, os.WriteFile(at(name), content, 0o600))
	}
	write("owner.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: trust.KeyDER(audittest.Public(audittest.Owner))}))
	reference, err := json.Marshal(tpmtest.Reference())
	check(t, err)
	write("reference.json", reference)
	write("bundle.json", audittest.File(t, audittest.New(t, audittest.Manifest(), nil)))
	b.ok("trust", "keygen", at("log"))
	b.ok("trust", "keygen", at("witness"))
	key, err := readPrivateKey(at("witness.key"))
	check(t, err)
	log, err := readLogKey(at("log.pub"))
	check(t, err)
	w, err := witness.New(at("state"), key, log)
	check(t, err)
	server := httptest.NewServer(w)
	defer server.Close()

	enter := []string{"audit", "enter", "--ledger", at("ledger"), "--key", at("log.key"), "--witness", server.URL, "--witness-key", at("witness.pub"), "-o", at("entered.json")}
	b.ok(append(enter, at("bundle.json"))...)
	verify := func(command string, more ...string) []string {
		return append([]string{"audit", command, "--owner-key", at("owner.pub"), "--reference", at("reference.json")}, more...)
	}
	ledgerFlags := []string{"--log-key", at("log.pub"), "--witness-key", at("witness.pub")}
	if got := b.ok(verify("verify", append(ledgerFlags, at("entered.json"))...)...); !strings.Contains(got, "seen by the witness") || !strings.Contains(got, "verified") {
		t.Errorf("got %s", got)
	}
	if got := b.ok(verify("verify", at("bundle.json"))...); !strings.Contains(got, "could have been kept back") {
		t.Errorf("got %s", got)
	}
	b.fails(1, "not in the ledger", verify("verify", append(ledgerFlags, at("bundle.json"))...)...)
	b.fails(1, "--log-key says which", verify("verify", "--witness-key", at("witness.pub"), at("entered.json"))...)
	b.ok(verify("report", append(ledgerFlags, "-o", at("report.html"), at("entered.json"))...)...)
	b.fails(1, "not in the ledger", verify("report", append(ledgerFlags, "-o", at("refused.html"), at("bundle.json"))...)...)
	for name, want := range map[string]string{"report.html": "A witness signed this at", "refused.html": "<strong>Refused.</strong>"} {
		page, err := os.ReadFile(at(name))
		check(t, err)
		if !strings.Contains(string(page), want) {
			t.Errorf("%s has no %q", name, want)
		}
	}
	b.fails(1, "owner's public key was not given", "audit", "report", "-o", at("unknown.html"), at("entered.json"))

	if got := b.ok("audit", "ledger", "--log-key", at("log.pub"), "--witness-key", at("witness.pub"), "-o", at("kept"), at("ledger")); !strings.Contains(got, "1 entries") {
		t.Errorf("got %s", got)
	}
	check(t, os.Truncate(at("ledger/entries"), 0))
	b.fails(1, "was cut", "audit", "ledger", "--log-key", at("log.pub"), "--since", at("kept"), at("ledger"))
	b.fails(1, "was cut", append(enter, at("bundle.json"))...)
	// Begun anew under the same key it is no longer what the witness has seen.
	check(t, os.RemoveAll(at("ledger")))
	b.ok("audit", "enter", "--ledger", at("ledger"), "--key", at("log.key"), "-o", at("alone.json"), at("bundle.json"))
	b.fails(1, "witness refuses the log", append(enter, at("bundle.json"))...)
}
