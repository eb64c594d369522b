package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"manis/audit/ledger"
	"manis/audit/witness"
)

// Decision is what a broker has decided about one request.
type Decision struct {
	At time.Time `json:"at"`
	// Protocol is that of the request where it is not the broker's own, see Proof.
	Protocol string   `json:"protocol,omitempty"`
	Manifest string   `json:"manifest,omitempty"` // digest, hex
	Nonce    string   `json:"nonce,omitempty"`
	Hardware string   `json:"hardware,omitempty"`
	Secrets  []string `json:"secrets,omitempty"` // names of those that were released
	Refused  string   `json:"refused,omitempty"` // why nothing was
}

// line is one line of the log: each has the digest of the one before.
type line struct {
	Number   int             `json:"number"`
	Previous []byte          `json:"previous"`
	Decision json.RawMessage `json:"decision"`
	// Salt is random, so that a ledger that has the line's digest tells nothing of the decision.
	Salt      []byte `json:"salt,omitempty"`
	Signature []byte `json:"signature,omitempty"`
}

func (l line) signed() []byte {
	l.Signature = nil
	b, err := json.Marshal(l)
	if err != nil {
		return nil // not for these types
	}
	return append([]byte("manis broker log\x00"), b...)
}

// Log is a file that grows by signed, chained lines.
type Log struct {
	mu      sync.Mutex
	file    *os.File
	key     ed25519.PrivateKey
	lines   [][]byte // digests
	ledger  *ledger.Ledger
	witness *witness.Client
}

// previous is the digest of the last line.
func (l *Log) previous() []byte { return last(l.lines) }

func last(lines [][]byte) []byte {
	if len(lines) == 0 {
		return make([]byte, sha256.Size)
	}
	return lines[len(lines)-1]
}

// OpenLog opens the log at path, or begins it. One that was changed is refused.
func OpenLog(path string, key ed25519.PrivateKey) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the broker's log: %w", err)
	}
	b, err := io.ReadAll(f)
	if err == nil {
		l := &Log{file: f, key: key}
		if l.lines, err = VerifyLog(b, key.Public().(ed25519.PublicKey)); err == nil {
			return l, nil
		}
	}
	f.Close()
	return nil, fmt.Errorf("open the broker's log %s: %w", path, err)
}

// VerifyLog checks a broker's log and returns the digests of its lines. A log that was cut off at a line is shorter, and
// that is all: a ledger knows how long it was, see Enter.
func VerifyLog(b []byte, broker ed25519.PublicKey) ([][]byte, error) {
	var lines [][]byte
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return nil, errors.New("the last line is not whole")
	}
	for raw := range bytes.Lines(b) {
		var l line
		if err := json.Unmarshal(raw, &l); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(lines), err)
		}
		if l.Number != len(lines) || !bytes.Equal(l.Previous, last(lines)) || !ed25519.Verify(broker, l.signed(), l.Signature) {
			return nil, fmt.Errorf("line %d was changed, or lines before it are missing", len(lines))
		}
		d := sha256.Sum256(bytes.TrimSuffix(raw, []byte("\n")))
		lines = append(lines, d[:])
	}
	return lines, nil
}

// Enter has every line entered into a ledger, too, and where witness is not nil the ledger's checkpoint cosigned, before
// Add returns. A log that is shorter than the ledger says, or another, is refused; a line that the ledger has
// not, because the machine went down between the two, is entered now. The ledger stays the caller's.
func (l *Log) Enter(to *ledger.Ledger, by *witness.Client) error {
	var known [][]byte
	for _, e := range to.Entries() {
		if e.Kind == ledger.Decision {
			known = append(known, e.Commitment)
		}
	}
	if len(known) > len(l.lines) {
		return fmt.Errorf("the broker's log has %d lines, and the ledger knows of %d: it was cut", len(l.lines), len(known))
	}
	for i, digest := range known {
		if !bytes.Equal(digest, l.lines[i]) {
			return fmt.Errorf("line %d of the broker's log is not the one in the ledger: it was replaced", i)
		}
	}
	for _, digest := range l.lines[len(known):] {
		if _, err := to.Add(ledger.Entry{Kind: ledger.Decision, Commitment: digest}); err != nil {
			return err
		}
	}
	l.ledger, l.witness = to, by
	return nil
}

// Add writes a decision, and returns when it is on the disk.
func (l *Log) Add(d Decision) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	next := line{Number: len(l.lines), Previous: l.previous(), Decision: b, Salt: make([]byte, 32)}
	rand.Read(next.Salt)
	next.Signature = ed25519.Sign(l.key, next.signed())
	if b, err = json.Marshal(next); err != nil {
		return err
	}
	if _, err := l.file.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write the broker's log: %w", err)
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("write the broker's log: %w", err)
	}
	digest := sha256.Sum256(b)
	l.lines = append(l.lines, digest[:])
	return l.enter(digest[:])
}

// enter puts a line into the ledger, if there is one; l.mu is held.
func (l *Log) enter(digest []byte) error {
	if l.ledger == nil {
		return nil
	}
	if _, err := l.ledger.Add(ledger.Entry{Kind: ledger.Decision, Commitment: digest}); err != nil {
		return err
	}
	if l.witness == nil {
		return nil
	}
	_, err := l.witness.Cosign(context.Background(), l.ledger)
	return err
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }
