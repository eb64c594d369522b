package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"manis/attest"
	"manis/broker/release"
)

// Client carries documents between a machine and a broker. It reads none of them: whoever it speaks with, the
// machine takes nothing but what the manifest's broker has signed.
type Client struct {
	// URL of the broker, http or https.
	URL string
}

// requestTime bounds one request to a broker.
const requestTime = 30 * time.Second

// Challenge asks for a nonce.
func (c *Client) Challenge(ctx context.Context) ([]byte, error) {
	var answer challenge
	b, err := c.post(ctx, "/v1/challenge", struct{}{})
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the broker %s for a challenge: %w", c.URL, err)
	}
	if len(answer.Nonce) < attest.MinNonce || len(answer.Nonce) > attest.MaxNonce {
		return nil, fmt.Errorf("ask the broker %s for a challenge: its nonce has %d bytes", c.URL, len(answer.Nonce))
	}
	return answer.Nonce, nil
}

// Release shows evidence and the signed manifest, and returns the broker's answer.
func (c *Client) Release(ctx context.Context, evidence, envelope []byte) ([]byte, error) {
	b, err := c.post(ctx, "/v1/release", claim{Evidence: evidence, Manifest: envelope})
	if err != nil {
		return nil, fmt.Errorf("ask the broker %s for the secrets: %w", c.URL, err)
	}
	return b, nil
}

func (c *Client) post(ctx context.Context, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.URL, "/")+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(io.LimitReader(resp.Body, release.MaxBytes+1)); err != nil {
		return nil, err
	}
	if len(b) > release.MaxBytes {
		return nil, errors.New("the answer is too long")
	}
	if resp.StatusCode != http.StatusOK {
		var refusal refusal
		if json.Unmarshal(b, &refusal) != nil || refusal.Error == "" {
			return nil, fmt.Errorf("it answers %s", resp.Status)
		}
		return nil, fmt.Errorf("refused: %.500s", refusal.Error)
	}
	return b, nil
}
