// Package ledger is a log that only grows, and can prove it: a Merkle tree over its entries (RFC 6962), whose root is signed with
// the number of entries (a checkpoint). That one entry is in it, and that one checkpoint is a continuation of another, has a short
// proof; a witness that has seen the one signs the other only with that proof (manis/audit/witness). An entry is a commitment, a
// digest over something with a random salt, so that a ledger tells nobody anything.
//
// It is a directory with two files: "entries", one line each, and "checkpoint". Both are written to the disk before Add
// returns, in that order; an entry counts from its checkpoint on.
package ledger

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// MaxEntries bounds a ledger: it is held in memory.
const MaxEntries = 1 << 22

// Kinds of entries.
const (
	Bundle   = "bundle"   // of an audit bundle
	Decision = "decision" // of a line of a broker's log
)

// Entry is one.
type Entry struct {
	Kind string
	// Commitment is a SHA-256.
	Commitment []byte
}

// line is the entry as it is written and hashed.
func (e Entry) line() []byte {
	return fmt.Appendf(nil, "%s %s", e.Kind, base64.StdEncoding.EncodeToString(e.Commitment))
}

func parseEntry(line []byte) (Entry, error) {
	kind, text, ok := bytes.Cut(line, []byte(" "))
	b, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if !ok || err != nil || len(b) != sha256.Size || (string(kind) != Bundle && string(kind) != Decision) {
		return Entry{}, fmt.Errorf("%.80q is no entry", line)
	}
	return Entry{string(kind), b}, nil
}

// Hash is the entry's leaf of the tree.
func (e Entry) Hash() tlog.Hash { return tlog.RecordHash(e.line()) }

// Names of the files, and of the last checkpoint that a witness has signed.
const (
	entriesFile    = "entries"
	checkpointFile = "checkpoint"
	witnessedFile  = "witnessed"
)

// tree is what there is of a ledger in memory.
type tree struct {
	entries []Entry
	hashes  []tlog.Hash // as tlog.StoredHashIndex counts
}

func (t *tree) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var all []tlog.Hash
		for _, i := range indexes {
			if i < 0 || i >= int64(len(t.hashes)) {
				return nil, errors.New("the ledger is shorter")
			}
			all = append(all, t.hashes[i])
		}
		return all, nil
	})
}

func (t *tree) add(e Entry) error {
	if len(t.entries) >= MaxEntries {
		return fmt.Errorf("the ledger is full: it has %d entries (begin another one)", MaxEntries)
	}
	hashes, err := tlog.StoredHashesForRecordHash(int64(len(t.entries)), e.Hash(), t.reader())
	if err != nil {
		return err
	}
	t.entries, t.hashes = append(t.entries, e), append(t.hashes, hashes...)
	return nil
}

// root is that of the first size entries.
func (t *tree) root(size int64) (tlog.Hash, error) {
	if size > int64(len(t.entries)) {
		return tlog.Hash{}, fmt.Errorf("the ledger has %d entries, and its checkpoint says %d: it was cut", len(t.entries), size)
	}
	if size == 0 {
		return sha256.Sum256(nil), nil
	}
	return tlog.TreeHash(size, t.reader())
}

// matches checks a checkpoint against the entries.
func (t *tree) matches(c *Checkpoint) error {
	root, err := t.root(c.Size)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("the first %d entries are not those of the checkpoint: the ledger was changed", c.Size)
	}
	return nil
}

// read reads the entries of a ledger, and how many bytes of the file are whole lines.
func read(f io.Reader) (*tree, int64, error) {
	const bytesOfEntry = 64
	b, err := io.ReadAll(io.LimitReader(f, MaxEntries*bytesOfEntry+1))
	if err != nil {
		return nil, 0, err
	}
	t, whole := new(tree), int64(0)
	for raw := range bytes.Lines(b) {
		line, ok := bytes.CutSuffix(raw, []byte("\n"))
		if !ok {
			break
		}
		e, err := parseEntry(line)
		if err == nil {
			err = t.add(e)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("entry %d: %w", len(t.entries), err)
		}
		whole += int64(len(raw))
	}
	return t, whole, nil
}

// Ledger is one that grows. It is open in one process at a time.
type Ledger struct {
	mu         sync.Mutex
	dir        string
	key        ed25519.PrivateKey
	file       *os.File
	tree       *tree
	checkpoint []byte
}

// Open opens the ledger in a directory, or begins it. One that does not fit its checkpoint is refused. An entry
// that was written without its checkpoint, because the machine went down, gets it now.
func Open(dir string, key ed25519.PrivateKey) (*Ledger, error) {
	l, err := begin(dir, key)
	if err != nil {
		return nil, fmt.Errorf("open the ledger %s: %w", dir, err)
	}
	return l, nil
}

func begin(dir string, key ed25519.PrivateKey) (*Ledger, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, entriesFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	l := &Ledger{dir: dir, key: key, file: f}
	if err := l.load(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *Ledger) load() error {
	if err := unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.New("another process has it open")
	}
	t, whole, err := read(l.file)
	if err != nil {
		return err
	}
	c := new(Checkpoint)
	l.checkpoint, err = readSmall(filepath.Join(l.dir, checkpointFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		// Begun, or killed before the first checkpoint: more than one entry was never without.
		if len(t.entries) > 1 {
			return errors.New("its checkpoint is missing")
		}
	case err != nil:
		return err
	default:
		if c, err = OpenCheckpoint(l.checkpoint, l.Key(), nil); err != nil {
			return err
		}
		if err := t.matches(c); err != nil {
			return err
		}
	}
	if int64(len(t.entries)) > c.Size+1 {
		return fmt.Errorf("%d entries were added to it by somebody else", int64(len(t.entries))-c.Size)
	}
	if err := l.file.Truncate(whole); err != nil {
		return err
	}
	l.tree = t
	if int64(len(t.entries)) > c.Size || l.checkpoint == nil {
		return l.sign()
	}
	return nil
}

// Key is the ledger's, by which its checkpoints are verified.
func (l *Ledger) Key() *Key { return LogKey(l.key.Public().(ed25519.PublicKey)) }

// Close gives the ledger back.
func (l *Ledger) Close() error { return l.file.Close() }

// sign makes the checkpoint of what there is and writes it; l.mu is held, or nobody else knows l.
func (l *Ledger) sign() error {
	size := int64(len(l.tree.entries))
	root, err := l.tree.root(size)
	if err != nil {
		return err
	}
	signed, err := Checkpoint{Origin: l.Key().name, Size: size, Root: root}.sign(l.key)
	if err != nil {
		return err
	}
	if err := WriteFile(filepath.Join(l.dir, checkpointFile), signed); err != nil {
		return err
	}
	l.checkpoint = signed
	return nil
}

// Add writes an entry and returns its number when entry and checkpoint are on the disk.
func (l *Ledger) Add(e Entry) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := parseEntry(e.line()); err != nil {
		return 0, err
	}
	if int64(len(l.tree.entries)) >= MaxEntries {
		return 0, l.tree.add(e)
	}
	if _, err := l.file.Write(append(e.line(), '\n')); err != nil {
		return 0, fmt.Errorf("write the ledger: %w", err)
	}
	if err := l.file.Sync(); err != nil {
		return 0, fmt.Errorf("write the ledger: %w", err)
	}
	if err := l.tree.add(e); err != nil {
		return 0, err
	}
	if err := l.sign(); err != nil {
		return 0, fmt.Errorf("write the ledger's checkpoint: %w", err)
	}
	return int64(len(l.tree.entries)) - 1, nil
}

// Entries are those that a checkpoint covers.
func (l *Ledger) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.entries[:len(l.tree.entries):len(l.tree.entries)]
}

// Checkpoint is the last one, with the signature of the witness if it was cosigned.
func (l *Ledger) Checkpoint() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.checkpoint)
}

// Witnessed is the last checkpoint that was cosigned; nil: none was.
func (l *Ledger) Witnessed() ([]byte, error) {
	b, err := readSmall(filepath.Join(l.dir, witnessedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// Cosigned keeps the ledger's checkpoint with the witness's signature.
func (l *Ledger) Cosigned(signed []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, err := OpenCheckpoint(signed, l.Key(), nil)
	if err != nil {
		return err
	}
	if err := l.tree.matches(c); err != nil {
		return err
	}
	if err := WriteFile(filepath.Join(l.dir, witnessedFile), signed); err != nil {
		return err
	}
	if c.Size == int64(len(l.tree.entries)) {
		l.checkpoint = bytes.Clone(signed)
		return WriteFile(filepath.Join(l.dir, checkpointFile), signed)
	}
	return nil
}

// ProveSince proves that the checkpoint of size entries continues the one of old entries.
func (l *Ledger) ProveSince(old, size int64) (tlog.TreeProof, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old <= 0 || old == size {
		return nil, nil
	}
	if old > size || size > int64(len(l.tree.entries)) {
		return nil, fmt.Errorf("the ledger has %d entries, fewer than the %d that it is to continue", len(l.tree.entries), max(old, size))
	}
	return tlog.ProveTree(size, old, l.tree.reader())
}

// Prove makes the proof that an entry is in the ledger, and that its checkpoint continues the one since; where
// that is nil, none.
func (l *Ledger) Prove(index int64, since []byte) (*Proof, error) {
	signed := l.Checkpoint()
	c, err := OpenCheckpoint(signed, l.Key(), nil)
	if err != nil {
		return nil, err
	}
	p := &Proof{Index: index, Checkpoint: string(signed)}
	if since != nil {
		old, err := OpenCheckpoint(since, l.Key(), nil)
		if err != nil {
			return nil, err
		}
		p.Since = string(since)
		if p.Consistency, err = l.ProveSince(old.Size, c.Size); err != nil {
			return nil, err
		}
		if err := Continues(old, c, p.Consistency); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if index < 0 || index >= c.Size {
		return nil, fmt.Errorf("the ledger has no entry %d", index)
	}
	p.Inclusion, err = tlog.ProveRecord(c.Size, index, l.tree.reader())
	return p, err
}

// Check reads the ledger in a directory for an auditor, and checks the whole of it: that the checkpoint is the log's,
// and the witness's if there is one, that it is of these entries, and that these continue since, which may be nil. It returns
// the checkpoint, and as it is signed.
func Check(dir string, log, witness *Key, since []byte) (*Checkpoint, []byte, error) {
	// The checkpoint first: a ledger that grows meanwhile has more entries than it says, not fewer.
	signed, err := readSmall(filepath.Join(dir, checkpointFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read the ledger %s: %w", dir, err)
	}
	f, err := os.Open(filepath.Join(dir, entriesFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read the ledger: %w", err)
	}
	defer f.Close()
	t, _, err := read(f)
	if err != nil {
		return nil, nil, fmt.Errorf("read the ledger %s: %w", dir, err)
	}
	c, err := OpenCheckpoint(signed, log, witness)
	if err != nil {
		return nil, nil, fmt.Errorf("check the ledger %s: %w", dir, err)
	}
	if err := t.matches(c); err != nil {
		return nil, nil, fmt.Errorf("check the ledger %s: %w", dir, err)
	}
	if since == nil {
		return c, signed, nil
	}
	old, err := OpenCheckpoint(since, log, nil)
	if err == nil && old.Size > c.Size {
		err = fmt.Errorf("it has %d entries, and had %d: it was rolled back", c.Size, old.Size)
	}
	if err == nil {
		err = t.matches(old)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("check the ledger %s: since the other checkpoint: %w", dir, err)
	}
	return c, signed, nil
}

// readSmall reads a file of at most MaxCheckpoint bytes.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxCheckpoint+1))
	if err == nil && len(b) > MaxCheckpoint {
		err = fmt.Errorf("%s has more than %d bytes", path, MaxCheckpoint)
	}
	return b, err
}

// WriteFile puts a file in place of another, on the disk, whole or not at all.
func WriteFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
