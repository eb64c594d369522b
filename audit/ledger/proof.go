package ledger

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Proof is that one entry is in a ledger. It needs nothing else but the ledger's key.
type Proof struct {
	Index int64 `json:"index"`
	// Inclusion is from the entry to the root of Checkpoint, a signed one.
	Inclusion  tlog.RecordProof `json:"inclusion"`
	Checkpoint string           `json:"checkpoint"`
	// Since is an older checkpoint, Consistency the proof that Checkpoint continues it. Empty: none was there.
	Since       string         `json:"since,omitempty"`
	Consistency tlog.TreeProof `json:"consistency,omitempty"`
}

// maxProof bounds the digests of a proof: a tree of MaxEntries has fewer.
const maxProof = 64

// Check verifies that the entry is in the ledger of this key, and that its checkpoint continues Since.
func (p *Proof) Check(e Entry, log *Key) (*Checkpoint, error) {
	if len(p.Inclusion) > maxProof || len(p.Consistency) > maxProof {
		return nil, errors.New("the proof is too long")
	}
	c, err := OpenCheckpoint([]byte(p.Checkpoint), log, nil)
	if err != nil {
		return nil, err
	}
	if p.Index < 0 || p.Index >= c.Size {
		return nil, fmt.Errorf("the proof is for entry %d of %d", p.Index, c.Size)
	}
	if err := tlog.CheckRecord(p.Inclusion, c.Size, c.Root, p.Index, e.Hash()); err != nil {
		return nil, errors.New("it is not the entry that the log has: the proof of inclusion does not lead to the checkpoint")
	}
	if p.Since == "" {
		return c, nil
	}
	old, err := OpenCheckpoint([]byte(p.Since), log, nil)
	if err != nil {
		return nil, err
	}
	return c, Continues(old, c, p.Consistency)
}

// Continues checks the proof that one checkpoint continues another of the same log: nothing was changed or removed.
func Continues(old, c *Checkpoint, proof tlog.TreeProof) error {
	switch {
	case old.Origin != c.Origin:
		return errors.New("the checkpoints are of two logs")
	case old.Size > c.Size:
		return fmt.Errorf("the log has %d entries, and had %d: it was rolled back", c.Size, old.Size)
	case len(proof) > maxProof:
		return errors.New("the proof is too long")
	case old.Size == 0:
		if old.Root != sha256.Sum256(nil) {
			return errors.New("an empty log has another root")
		}
		return nil
	case old.Size == c.Size:
		if old.Root != c.Root {
			return fmt.Errorf("there are two logs of %d entries with one key: it was forked", c.Size)
		}
		return nil
	}
	if err := tlog.CheckTree(proof, c.Size, c.Root, old.Size, old.Root); err != nil {
		return fmt.Errorf("the log of %d entries does not continue the one of %d: entries were changed, or it was forked", c.Size, old.Size)
	}
	return nil
}
