package ledger

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"manis/trust"
)

// MaxCheckpoint bounds a signed checkpoint, bytes.
const MaxCheckpoint = 16 << 10

// Checkpoint says what a log was at one time.
type Checkpoint struct {
	// Origin names the log: Name of its key.
	Origin string
	// Size is the number of its entries, Root the root of their tree.
	Size int64
	Root tlog.Hash
	// Cosigned is when a witness has signed it, if Open was given one.
	Cosigned time.Time
}

// text is the body of the note (C2SP tlog-checkpoint).
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
}

// parseText reads a checkpoint's body; lines after the third, which a log may add, are signed, too, and mean nothing here.
func parseText(s string) (*Checkpoint, error) {
	lines := strings.SplitN(s, "\n", 4)
	if len(lines) != 4 || lines[0] == "" {
		return nil, errors.New("the checkpoint is not one")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || size > MaxEntries || strconv.FormatInt(size, 10) != lines[1] {
		return nil, fmt.Errorf("the checkpoint's size %.40q is none from 0 to %d", lines[1], MaxEntries)
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return nil, fmt.Errorf("the checkpoint's root %.80q is no digest", lines[2])
	}
	return &Checkpoint{Origin: lines[0], Size: size, Root: root}, nil
}

// Name is the name under which a key signs notes.
func Name(key ed25519.PublicKey) string { return "manis.log/" + trust.KeyID(key)[:32] }

// Kinds of signatures of a note (C2SP signed-note).
const (
	plainSignature = 1
	cosignature    = 4 // with a time: C2SP tlog-cosignature
)

// Key is a public key of a log or a witness. It is a note.Verifier.
type Key struct {
	name   string
	kind   byte
	public ed25519.PublicKey
}

// LogKey is that of a log, WitnessKey that of a witness.
func LogKey(public ed25519.PublicKey) *Key { return &Key{Name(public), plainSignature, public} }

// WitnessKey is the key of a Manis witness: others have names of their own, see ParseWitnessKey.
func WitnessKey(public ed25519.PublicKey) *Key { return &Key{Name(public), cosignature, public} }

// ParseWitnessKey reads a witness's key in the form of C2SP signed-note, NAME+HASH+KEY.
func ParseWitnessKey(s string) (*Key, error) {
	name, rest, _ := strings.Cut(strings.TrimSpace(s), "+")
	hash, key, _ := strings.Cut(rest, "+")
	b, err := base64.StdEncoding.Strict().DecodeString(key)
	if err != nil || len(b) != 1+ed25519.PublicKeySize || b[0] != cosignature || name == "" || strings.ContainsAny(name, " \t\r\n") {
		return nil, fmt.Errorf("the key %.100q is not that of a witness, NAME+HASH+KEY with an ed25519 key for cosignatures", s)
	}
	k := &Key{name, cosignature, b[1:]}
	if hash != fmt.Sprintf("%08x", k.KeyHash()) {
		return nil, fmt.Errorf("the key %.100q has another hash than its name and its key make", s)
	}
	return k, nil
}

// Name implements note.Verifier.
func (k *Key) Name() string { return k.name }

// KeyHash implements note.Verifier.
func (k *Key) KeyHash() uint32 {
	d := sha256.Sum256(append([]byte(k.name+"\n"), append([]byte{k.kind}, k.public...)...))
	return binary.BigEndian.Uint32(d[:])
}

// String is the key as others read it: NAME+HASH+KEY.
func (k *Key) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.KeyHash(), base64.StdEncoding.EncodeToString(append([]byte{k.kind}, k.public...)))
}

// Verify implements note.Verifier.
func (k *Key) Verify(text, signature []byte) bool {
	if k.kind == plainSignature {
		return ed25519.Verify(k.public, text, signature)
	}
	return len(signature) == 8+ed25519.SignatureSize && ed25519.Verify(k.public, cosigned(binary.BigEndian.Uint64(signature), text), signature[8:])
}

// cosigned is what a witness signs.
func cosigned(at uint64, text []byte) []byte {
	return fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text)
}

// signer is a Key with the other half.
type signer struct {
	*Key
	private ed25519.PrivateKey
	now     func() time.Time
}

// Sign implements note.Signer.
func (s signer) Sign(text []byte) ([]byte, error) {
	if s.kind == plainSignature {
		return ed25519.Sign(s.private, text), nil
	}
	at := uint64(s.now().Unix())
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(s.private, cosigned(at, text))...), nil
}

// sign makes the signed checkpoint of a log.
func (c Checkpoint) sign(key ed25519.PrivateKey) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.text()}, signer{LogKey(key.Public().(ed25519.PublicKey)), key, time.Now})
}

// Cosign returns the line by which a witness vouches for a checkpoint: that it is consistent with all that the
// witness has seen of this log before. The caller knows that.
func Cosign(signed []byte, log *Key, key ed25519.PrivateKey) ([]byte, error) {
	n, _, err := open(signed, log, nil)
	if err != nil {
		return nil, err
	}
	n.Sigs, n.UnverifiedSigs = nil, nil
	made, err := note.Sign(n, signer{WitnessKey(key.Public().(ed25519.PublicKey)), key, time.Now})
	if err != nil {
		return nil, err
	}
	return bytes.TrimPrefix(made, []byte(n.Text+"\n")), nil
}

// AddCosignature puts a witness's line to a checkpoint, if it is that witness's.
func AddCosignature(signed, line []byte, log, witness *Key) ([]byte, error) {
	if len(line) > 1024 {
		return nil, errors.New("the witness's answer is too long")
	}
	n, _, err := open(signed, log, nil)
	if err != nil {
		return nil, err
	}
	both := append([]byte(n.Text+"\n"), signatures(n)...)
	both = append(both, line...)
	if _, err := OpenCheckpoint(both, log, witness); err != nil {
		return nil, err
	}
	return both, nil
}

// signatures are the lines of the verified signatures of a note.
func signatures(n *note.Note) []byte {
	var b []byte
	for _, s := range n.Sigs {
		b = fmt.Appendf(b, "— %s %s\n", s.Name, s.Base64)
	}
	return b
}

// OpenCheckpoint verifies a signed checkpoint of a log, and where witness is not nil that the witness has cosigned it.
func OpenCheckpoint(signed []byte, log, witness *Key) (*Checkpoint, error) {
	_, c, err := open(signed, log, witness)
	return c, err
}

func open(signed []byte, log, witness *Key) (*note.Note, *Checkpoint, error) {
	if len(signed) > MaxCheckpoint {
		return nil, nil, fmt.Errorf("the checkpoint has %d bytes, more than %d", len(signed), MaxCheckpoint)
	}
	keys := []note.Verifier{log}
	if witness != nil {
		keys = append(keys, witness)
	}
	n, err := note.Open(signed, note.VerifierList(keys...))
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		return nil, nil, fmt.Errorf("the checkpoint is not signed by the log %s", log.name)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the checkpoint: %w", err)
	}
	c, err := parseText(n.Text)
	if err != nil {
		return nil, nil, err
	}
	signedBy := func(k *Key) *note.Signature {
		for i := range n.Sigs {
			if n.Sigs[i].Name == k.name && n.Sigs[i].Hash == k.KeyHash() {
				return &n.Sigs[i]
			}
		}
		return nil
	}
	if signedBy(log) == nil || c.Origin != log.name {
		return nil, nil, fmt.Errorf("the checkpoint is not signed by the log %s", log.name)
	}
	if witness == nil {
		return n, c, nil
	}
	s := signedBy(witness)
	if s == nil {
		return nil, nil, fmt.Errorf("%w (%s)", ErrWitness, witness.name)
	}
	b, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(b) < 12 {
		return nil, nil, fmt.Errorf("%w (%s)", ErrWitness, witness.name)
	}
	c.Cosigned = time.Unix(int64(binary.BigEndian.Uint64(b[4:12])), 0).UTC()
	return n, c, nil
}

// ErrWitness: a checkpoint lacks the witness's signature.
var ErrWitness = errors.New("the checkpoint is not cosigned by the witness: nobody else is known to have seen the log like this")
