package rules

import (
	"strings"
	"testing"
	"time"

	"manis/attest"
	"manis/broker/facts"
	"manis/trust"
)

func someFacts() *facts.Facts {
	return &facts.Facts{
		Result: &attest.Result{Hardware: "none", FirmwareKnown: true}, Evidence: &attest.Evidence{Kind: attest.KindTPM, Owner: "owner"}, Digest: "abcd",
		Manifest: &trust.Manifest{
			Version: 3, Network: "none", Expires: time.Unix(2e9, 0).UTC(), Containers: []trust.Container{{Args: []string{"cat"}, Env: []string{"A=1"}}},
			Calls: []string{}, Secrets: []trust.Secret{{Name: "greeting", Path: "/run/greeting"}},
		},
		Now: time.Unix(1e9, 0),
	}
}

func TestRules(t *testing.T) {
	nested := "[0,1,2,3,4,5,6,7,8,9]" + strings.Repeat(".map(x, [0,1,2,3,4,5,6,7,8,9].map(y, x + y).size())", 20)
	deep := "true"
	for _, v := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		deep = "[0,1,2,3,4,5,6,7,8,9].all(" + v + ", " + deep + ")"
	}
	for name, c := range map[string]struct{ file, parse, check string }{
		"true": {file: `# a note
no-network: manifest.network == "none"
known:
  firmwareKnown &&
  hardware in ["none", "sev-snp"] && kind == "tpm2"
args: manifest.containers.all(c, c.args[0] == "cat" && !c.env.exists(e, e.startsWith("LD_")))
secrets: secrets == ["greeting"] && digest == "abcd" && owner == "owner"
time: now < timestamp("2002-01-01T00:00:00Z") && manifest.version >= 3.0
`},
		"not true":         {file: "first: true\nhardware-only: hardware != \"none\"\n", check: "rule hardware-only: it is not true"},
		"no such member":   {file: "x: manifest.nope == 1", check: "rule x: it cannot be evaluated"},
		"without end":      {file: "x: " + deep, check: "rule x: it cannot be evaluated"},
		"not bool":         {file: "x: 1 + 1", parse: "not true or false"},
		"dyn":              {file: "x: manifest.version", parse: "not true or false"},
		"no such variable": {file: "x: nope", parse: "rule x"},
		"no expression":    {file: "x:", parse: "rule x"},
		"no name":          {file: "true", parse: "line 1"},
		"twice":            {file: "x: true\nx: true", parse: "line 2"},
		"continues":        {file: "  true", parse: "continues no rule"},
		"empty":            {file: "# nothing\n", parse: "0 rules"},
		"too long":         {file: strings.Repeat("#\n", MaxBytes), parse: "more than"},
		"too many":         {file: many(), parse: "65 rules"},
		"too deep":         {file: "x: " + strings.Repeat("(", 300) + "true" + strings.Repeat(")", 300), parse: "rule x"},
		"bounded":          {file: "x: " + nested + ".size() == 10"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Parse([]byte(c.file))
			if (err == nil) != (c.parse == "") || err != nil && !strings.Contains(err.Error(), c.parse) {
				t.Fatalf("read: got %v, want %q", err, c.parse)
			}
			if err != nil {
				return
			}
			err = r.Check(someFacts())
			if (err == nil) != (c.check == "") || err != nil && !strings.Contains(err.Error(), c.check) {
				t.Errorf("got %v, want %q", err, c.check)
			}
		})
	}
}

func many() string {
	var b strings.Builder
	for i := range maxRules + 1 {
		b.WriteString(strings.Repeat("x", i%8+1) + strings.Repeat("y", i/8+1) + ": true\n")
	}
	return b.String()
}

// FuzzParse: whatever a file has, it is read or refused, and evaluated in bounds.
func FuzzParse(f *testing.F) {
	f.Add([]byte("a: hardware == \"none\"\nb: manifest.containers.all(c, c.args.size() > 0)\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := Parse(b); err == nil {
			r.Check(someFacts())
		}
	})
}
