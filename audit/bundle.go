package audit

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"manis/audit/ledger"
)

// BundleFormat is the version of a bundle, MaxBundle its largest size in bytes.
const (
	BundleFormat = "manis.bundle/1"
	MaxBundle    = 16 << 20
)

// Bundle is all that an auditor needs of one run, besides the owner's key and the reference values.
type Bundle struct {
	Format string `json:"format"`
	// Envelope is the signed manifest, Evidence what the machine last attested, Entries its log.
	Envelope json.RawMessage   `json:"manifest"`
	Evidence json.RawMessage   `json:"evidence"`
	Entries  []json.RawMessage `json:"events"`
	// Log is the proof that the bundle is in a ledger. Nil: it is in none that it knows of.
	Log *Logged `json:"log,omitempty"`
}

// Logged is where a bundle is in a ledger.
type Logged struct {
	// Salt is random, SaltBytes: the entry tells nothing of the bundle to who has not got it.
	Salt  []byte       `json:"salt"`
	Proof ledger.Proof `json:"proof"`
}

// Entry is what a ledger has of a bundle: the commitment to everything in it but the texts that can be
// withheld, which its events commit to.
func (b *Bundle) Entry(salt []byte) (ledger.Entry, error) {
	core := *b
	core.Log, core.Entries = nil, slices.Clone(b.Entries)
	if err := Withhold(core.Entries); err != nil {
		return ledger.Entry{}, err
	}
	file, err := json.Marshal(core)
	if err != nil {
		return ledger.Entry{}, err
	}
	h := sha256.New()
	h.Write([]byte("manis.commitment/1\x00"))
	h.Write(salt)
	h.Write(file)
	return ledger.Entry{Kind: ledger.Bundle, Commitment: h.Sum(nil)}, nil
}

// Enter writes a bundle into a ledger, or finds it there, and returns the number of its entry and the salt.
func (b *Bundle) Enter(l *ledger.Ledger) (int64, []byte, error) {
	if b.Log != nil && len(b.Log.Salt) == SaltBytes {
		entry, err := b.Entry(b.Log.Salt)
		if err != nil {
			return 0, nil, err
		}
		if all, i := l.Entries(), b.Log.Proof.Index; i >= 0 && i < int64(len(all)) && bytes.Equal(all[i].Commitment, entry.Commitment) {
			return i, b.Log.Salt, nil
		}
	}
	salt := make([]byte, SaltBytes)
	rand.Read(salt)
	entry, err := b.Entry(salt)
	if err != nil {
		return 0, nil, err
	}
	index, err := l.Add(entry)
	return index, salt, err
}

// Parse reads a bundle and believes nothing of it.
func Parse(b []byte) (*Bundle, error) {
	if len(b) > MaxBundle {
		return nil, fmt.Errorf("the bundle has %d bytes, more than %d", len(b), MaxBundle)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	bundle := new(Bundle)
	if err := d.Decode(bundle); err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("read the bundle: there is more than one document")
	}
	if bundle.Format != BundleFormat {
		return nil, fmt.Errorf("the bundle has format %.40q, not %q", bundle.Format, BundleFormat)
	}
	return bundle, nil
}

// sum is the SHA-256 of a file.
func sum(b []byte) []byte {
	d := sha256.Sum256(b)
	return d[:]
}
