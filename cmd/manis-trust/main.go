// Command manis-trust is manis with what brokers and auditors need besides: it decides on evidence of every kind, by an owner's rules,
// and writes reports. manis becomes this program for `trust broker`, `audit verify` and `audit report`.
package main

import (
	"crypto/ed25519"
	"net/http"
	"os"

	_ "manis/attest/snp" // evidence of these kinds is verified, too
	_ "manis/attest/tdx"
	"manis/audit/report"
	"manis/broker"
	"manis/broker/facts"
	"manis/broker/kbs"
	"manis/broker/rules"
	"manis/cli"
)

func main() {
	os.Exit(cli.TrustMain(os.Args[1:], &cli.Evidence{
		Rules:  func(file []byte) (facts.Rules, error) { return rules.Parse(file) },
		Report: report.Write,
		KBS:    func(b *broker.Broker, key ed25519.PrivateKey) http.Handler { return kbs.New(b, key) },
	}))
}
