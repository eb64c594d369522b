package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"strings"
	"testing"
)

// TestBrokerKBS: the program answers clients of Confidential Containers' key broker where it was asked to, beside its own protocol, and what it
// refuses is in its log. That evidence is accepted is shown with a TPM in broker/kbs: no machine of Manis speaks this protocol.
func TestBrokerKBS(t *testing.T) {
	c := newConfidential(t)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar}
	post := func(url, body string) (int, string) {
		t.Helper()
		resp, err := client.Post(url, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	const request = `{"version":"0.4.0","tee":"tpm","extra-params":{}}`
	if status, body := post(c.serve()+"/kbs/v0/auth", request); status == http.StatusOK {
		t.Errorf("a broker without --kbs answers %d, %s", status, body)
	}
	if err := os.Remove(c.at("broker.log")); err != nil {
		t.Fatal(err)
	}

	url := c.serve("--kbs")
	if status, body := post(url+"/v1/challenge", "{}"); status != http.StatusOK {
		t.Errorf("the broker's own protocol: %d, %s", status, body)
	}
	status, body := post(url+"/kbs/v0/auth", request)
	var challenge struct{ Nonce string }
	if err := json.Unmarshal([]byte(body), &challenge); err != nil || status != http.StatusOK || challenge.Nonce == "" {
		t.Fatalf("auth: %d, %s", status, body)
	}
	if status, body := post(url+"/kbs/v0/attest", `{"runtime-data":{"nonce":"`+challenge.Nonce+`","tee-pubkey":{}}}`); status != http.StatusUnauthorized || !strings.Contains(body, "tee-pubkey") {
		t.Errorf("attest: %d, %s", status, body)
	}
	log, err := os.ReadFile(c.at("broker.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"protocol":"kbs"`, `"nonce":"` + challenge.Nonce + `"`, `"refused":"tee-pubkey`} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log has no %s: %s", want, log)
		}
	}
}
