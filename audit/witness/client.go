package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"manis/audit/ledger"
)

// Client has checkpoints of a ledger cosigned.
type Client struct {
	// URL of the witness, http or https.
	URL string
	// Key is the witness's.
	Key *ledger.Key
}

// requestTime bounds one request to a witness.
const requestTime = 30 * time.Second

// ErrForked: the witness has seen another log under this key.
var ErrForked = errors.New("the witness refuses the log: it has seen one that this does not continue")

// Cosign has the ledger's checkpoint cosigned, keeps it with the signature, and returns it. The witness says what it has
// seen last, and gets the proof from there.
func (c *Client) Cosign(ctx context.Context, l *ledger.Ledger) ([]byte, error) {
	signed, err := c.cosign(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("have the witness %s sign the log's checkpoint: %w", c.URL, err)
	}
	return signed, l.Cosigned(signed)
}

func (c *Client) cosign(ctx context.Context, l *ledger.Ledger) ([]byte, error) {
	signed := l.Checkpoint()
	now, err := ledger.OpenCheckpoint(signed, l.Key(), nil)
	if err != nil {
		return nil, err
	}
	var old int64
	if b, err := l.Witnessed(); err != nil {
		return nil, err
	} else if b != nil {
		last, err := ledger.OpenCheckpoint(b, l.Key(), nil)
		if err != nil {
			return nil, err
		}
		old = min(last.Size, now.Size)
	}
	for try := 0; ; try++ {
		line, seen, err := c.ask(ctx, l, old, now.Size, signed)
		switch {
		case err != nil:
			return nil, err
		case line != nil:
			return ledger.AddCosignature(signed, line, l.Key(), c.Key)
		case seen > now.Size:
			return nil, fmt.Errorf("%w: it has seen %d entries, and there are %d (rolled back?)", ErrForked, seen, now.Size)
		case seen == old || try > 3:
			return nil, ErrForked
		}
		old = seen
	}
}

// ask makes one request. Without a line and an error it returns the size that the witness has seen.
func (c *Client) ask(ctx context.Context, l *ledger.Ledger, old, size int64, signed []byte) ([]byte, int64, error) {
	proof, err := l.ProveSince(old, size)
	if err != nil {
		return nil, 0, err
	}
	body := fmt.Appendf(nil, "old %d\n", old)
	for _, h := range proof {
		body = fmt.Appendf(body, "%s\n", h)
	}
	body = append(append(body, '\n'), signed...)
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return nil, 0, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return answer, 0, nil
	case http.StatusConflict:
		seen, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64)
		if err != nil || seen < 0 {
			return nil, 0, errors.New("it says that it has seen another log, and not which")
		}
		return nil, seen, nil
	case http.StatusUnprocessableEntity:
		return nil, 0, fmt.Errorf("%w (%.300q)", ErrForked, answer)
	}
	return nil, 0, fmt.Errorf("it answers %s: %.300q", resp.Status, answer)
}
