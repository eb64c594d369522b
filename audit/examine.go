package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"

	"manis/attest"
	"manis/audit/ledger"
	"manis/trust"
)

// Expect is what an auditor knows without the bundle. What is missing is not checked, and the examination says so.
type Expect struct {
	Owner     ed25519.PublicKey
	Reference *attest.Reference
	// Log is the key of the ledger that the bundle has to be in; nil: none. Witness is that of who has to have seen the
	// ledger, Since an older checkpoint that it has to continue; nil: none.
	Log, Witness *ledger.Key
	Since        []byte
}

// Names of the checks of a bundle, in their order.
const (
	CheckBundle      = "bundle"
	CheckOwner       = "manifest"
	CheckEvidence    = "evidence"
	CheckEvents      = "events"
	CheckAttestation = "attestation"
	CheckEnd         = "end"
	CheckInclusion   = "inclusion"
	CheckConsistency = "consistency"
	CheckWitness     = "witness"
)

// Finding is one check and what has come of it.
type Finding struct {
	Check string
	// Shows is what follows where it has passed, for people.
	Shows string
	// Done: it was made. Err is why it has failed; nil and Done: it has passed.
	Done bool
	Err  error
	// Missing is why it was not made. Optional: nobody has asked for it.
	Missing  string
	Optional bool
}

// Passed reports whether the check was made and nothing was wrong.
func (f Finding) Passed() bool { return f.Done && f.Err == nil }

// Report is what a bundle has shown. A member is set only if its check has passed (Events: or if nothing but
// the log's end is missing), so that nothing in it is a claim that was not verified.
type Report struct {
	// Digest is the SHA-256 of the bundle's file, Bytes its length.
	Digest []byte
	Bytes  int

	Manifest *trust.Manifest
	// Canonical is the manifest's digest, Owner the id of the key that has signed it.
	Canonical []byte
	Owner     string
	Evidence  *attest.Evidence
	Result    *attest.Result
	Reference *attest.Reference
	Events    []Event
	// Checkpoint is that of the ledger which the bundle is in.
	Checkpoint *ledger.Checkpoint

	Findings []Finding
}

// Err is what is wrong with the bundle; nil: everything was checked and is in order. It is ErrUnfinished if
// nothing but the end of its log is missing.
func (r *Report) Err() error {
	for _, f := range r.Findings {
		if f.Err != nil {
			return f.Err
		}
	}
	for _, f := range r.Findings {
		if !f.Done && !f.Optional {
			return fmt.Errorf("%s: not checked: %s", f.Check, f.Missing)
		}
	}
	return nil
}

// Passed reports whether a check of this name was made and nothing was wrong.
func (r *Report) Passed(check string) bool {
	for _, f := range r.Findings {
		if f.Check == check {
			return f.Passed()
		}
	}
	return false
}

func (r *Report) found(check, shows string, err error) bool {
	r.Findings = append(r.Findings, Finding{Check: check, Shows: shows, Done: true, Err: err})
	return err == nil
}

func (r *Report) missing(check, shows, why string) {
	r.Findings = append(r.Findings, Finding{Check: check, Shows: shows, Missing: why})
}

// What each check shows.
const (
	showsBundle      = "the file is a bundle and has nothing in it that this release does not know"
	showsOwner       = "the owner has signed this manifest, to the byte"
	showsEvidence    = "a machine as the reference values say has booted and enforces this manifest"
	showsEvents      = "the machine of the evidence has signed every event, none between two others is missing, changed or in another place"
	showsAttestation = "evidence and log are of the same boot"
	showsEnd         = "nothing of the log was cut off"
	showsInclusion   = "the bundle is an entry of the ledger: it was there, as it is, when the ledger's checkpoint was signed"
	showsConsistency = "the ledger has only grown since the older checkpoint: no entry was changed or removed"
	showsWitness     = "an independent witness has seen the ledger like this, and will sign no other that does not continue it"
)

// Examine verifies a bundle with nothing but what the auditor has: that the owner has signed the manifest, that the
// evidence is of a machine as the reference values say that enforces it, and that the log is that machine's, whole. It
// goes on after a failure as far as what follows does not hang on it.
func Examine(b []byte, expect Expect) *Report {
	r := &Report{Digest: sum(b), Bytes: len(b)}
	bundle, err := Parse(b)
	if !r.found(CheckBundle, showsBundle, err) {
		r.skip("the bundle cannot be read", CheckOwner, CheckEvidence, CheckEvents, CheckAttestation, CheckEnd, CheckInclusion, CheckConsistency, CheckWitness)
		return r
	}
	r.run(bundle, expect)
	r.logged(bundle, expect)
	return r
}

// run examines what a bundle says by itself.
func (r *Report) run(bundle *Bundle, expect Expect) {
	switch {
	case expect.Owner == nil:
		r.missing(CheckOwner, showsOwner, "the owner's public key was not given")
	case r.owner(bundle, expect):
		r.evidence(bundle, expect)
	}
	if r.Manifest == nil {
		r.skip("nobody is known to have signed the manifest", CheckEvidence)
	}
	if r.Evidence == nil {
		r.skip("no machine is known to have signed the log", CheckEvents, CheckAttestation, CheckEnd)
		return
	}
	r.log(bundle)
}

// skip notes checks that were not made.
func (r *Report) skip(why string, checks ...string) {
	shows := map[string]string{
		CheckOwner: showsOwner, CheckEvidence: showsEvidence, CheckEvents: showsEvents, CheckAttestation: showsAttestation, CheckEnd: showsEnd,
		CheckInclusion: showsInclusion, CheckConsistency: showsConsistency, CheckWitness: showsWitness,
	}
	for _, c := range checks {
		r.missing(c, shows[c], why)
	}
}

func (r *Report) owner(bundle *Bundle, expect Expect) bool {
	m, canonical, err := trust.Open(bundle.Envelope, expect.Owner)
	if !r.found(CheckOwner, showsOwner, err) {
		return false
	}
	r.Manifest, r.Canonical, r.Owner = m, trust.Digest(canonical), trust.KeyID(expect.Owner)
	return true
}

func (r *Report) evidence(bundle *Bundle, expect Expect) {
	if expect.Reference == nil {
		r.missing(CheckEvidence, showsEvidence, "reference values were not given")
		return
	}
	e, err := attest.Parse(bundle.Evidence)
	if err == nil && (!bytes.Equal(e.Manifest, r.Canonical) || e.Owner != r.Owner) {
		err = errors.New("the evidence is of a machine with another manifest")
	}
	var result *attest.Result
	if err == nil {
		result, err = attest.Verify(e, expect.Reference)
	}
	if r.found(CheckEvidence, showsEvidence, err) {
		r.Evidence, r.Result, r.Reference = e, result, expect.Reference
	}
}

func (r *Report) log(bundle *Bundle) {
	signer, err := trust.ParseKey(r.Evidence.Signer)
	var events []Event
	if err == nil {
		events, err = Verify(bundle.Entries, signer, r.Canonical)
	}
	unfinished := errors.Is(err, ErrUnfinished)
	if unfinished {
		err = nil
	}
	if !r.found(CheckEvents, showsEvents, err) {
		r.skip("the log is not the machine's", CheckAttestation, CheckEnd)
		return
	}
	// The evidence is one that the log knows of: the quote itself, so that no other boot's can be in its place.
	nonce := base64.StdEncoding.EncodeToString(r.Evidence.Nonce)
	attested := false
	for _, e := range events {
		attested = attested || e.Kind == Attested && e.What["nonce"] == nonce
	}
	if err = nil; !attested {
		err = errors.New("the log has no attestation with the evidence's nonce")
	}
	if !r.found(CheckAttestation, showsAttestation, err) {
		r.skip("the log is of another boot", CheckEnd)
		return
	}
	r.Events = events
	if unfinished {
		err = ErrUnfinished
	}
	r.found(CheckEnd, showsEnd, err)
}

// logged examines where the bundle is in a ledger.
func (r *Report) logged(bundle *Bundle, expect Expect) {
	optional := func(check, shows, why string) {
		r.Findings = append(r.Findings, Finding{Check: check, Shows: shows, Missing: why, Optional: true})
	}
	switch {
	case expect.Log == nil && bundle.Log == nil:
		const why = "the bundle is in no ledger: it could have been kept back, or be one of several of the same run"
		optional(CheckInclusion, showsInclusion, why)
		optional(CheckConsistency, showsConsistency, why)
		optional(CheckWitness, showsWitness, why)
		return
	case expect.Log == nil:
		const why = "the ledger's key was not given"
		optional(CheckInclusion, showsInclusion, why)
		optional(CheckConsistency, showsConsistency, why)
		optional(CheckWitness, showsWitness, why)
		return
	}
	c, err := bundle.included(expect.Log)
	if !r.found(CheckInclusion, showsInclusion, err) {
		r.skip("the bundle is not in the ledger", CheckConsistency, CheckWitness)
		return
	}
	r.Checkpoint = c
	switch {
	case expect.Since != nil:
		r.found(CheckConsistency, showsConsistency, bundle.Log.continues(c, expect))
	case bundle.Log.Proof.Since == "":
		optional(CheckConsistency, showsConsistency, "there is no older checkpoint to compare with")
	default:
		r.found(CheckConsistency, showsConsistency, nil) // Proof.Check has
	}
	if expect.Witness == nil {
		optional(CheckWitness, showsWitness, "the witness's key was not given")
		return
	}
	cosigned, err := ledger.OpenCheckpoint([]byte(bundle.Log.Proof.Checkpoint), expect.Log, expect.Witness)
	if r.found(CheckWitness, showsWitness, err) {
		r.Checkpoint = cosigned
	}
}

// included checks that the bundle is in the ledger of a key.
func (b *Bundle) included(log *ledger.Key) (*ledger.Checkpoint, error) {
	if b.Log == nil {
		return nil, errors.New("the bundle is not in the ledger: it could have been kept back, or be one of several of the same run")
	}
	if len(b.Log.Salt) != SaltBytes {
		return nil, fmt.Errorf("the salt has %d bytes, not %d", len(b.Log.Salt), SaltBytes)
	}
	entry, err := b.Entry(b.Log.Salt)
	if err != nil {
		return nil, err
	}
	return b.Log.Proof.Check(entry, log)
}

// continues checks that the ledger continues a checkpoint of the auditor's.
func (l *Logged) continues(c *ledger.Checkpoint, expect Expect) error {
	mine, err := ledger.OpenCheckpoint(expect.Since, expect.Log, nil)
	if err != nil {
		return fmt.Errorf("the older checkpoint: %w", err)
	}
	if mine.Size >= c.Size || mine.Size == 0 {
		return ledger.Continues(mine, c, nil)
	}
	theirs, err := ledger.OpenCheckpoint([]byte(l.Proof.Since), expect.Log, nil)
	if err == nil && theirs.Size == mine.Size {
		return ledger.Continues(mine, c, l.Proof.Consistency)
	}
	return fmt.Errorf("the bundle has no proof from the checkpoint of %d entries (manis audit enter --since makes one)", mine.Size)
}
