// Package audit is the log of one confidential machine: what was asked of it, what it decided, what its containers
// did. Each event holds the digest of the one before and is signed by a key that the machine's evidence names, so that
// an event can be neither changed, left out nor put elsewhere without that being seen. The log ends with an event
// that says so: one without it was cut off, or the machine was. Bundle is what an auditor is handed.
package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Kinds of events.
const (
	Admitted = "manifest" // a manifest is in force
	Attested = "attest"   // evidence was made
	Released = "release"  // secrets of the broker have arrived
	Created  = "create"   // a container was made as the manifest says
	Started  = "start"    // its first process runs
	Denied   = "deny"     // a request was refused
	Failed   = "fail"     // a container could not be made, or its first process not be started
	Exited   = "exit"     // a first process has ended
	Tampered = "tamper"   // a disk of a container's gave back what was not written there; the container got an I/O error
	Closed   = "end"      // no process of a container is left: nothing follows but this
	Muted    = "suppress" // further denials are counted, not written
)

// MaxEvents bounds a log: from MaxDenials denials on they are only counted, so that nobody can fill it.
const (
	MaxEvents  = 4096
	MaxDenials = 1024
)

// Event is one entry.
type Event struct {
	Number uint32 `json:"number"`
	// Previous is the digest of the entry before; of the first one, that of the manifest.
	Previous []byte `json:"previous"`
	Kind     string `json:"kind"`
	// What are the details, by name.
	What map[string]string `json:"what,omitempty"`
	// Committed are those that can quote a request, and with it somebody's personal data: here is Commit of
	// each, and the text is beside the event, see Entry.
	Committed map[string][]byte `json:"committed,omitempty"`
	// Withheld are the names of those of Committed whose text the entry does not have. Verify fills it in, and
	// puts the texts that there are into What.
	Withheld []string `json:"-"`
}

// Entry is an event with its signature over the event's bytes.
type Entry struct {
	Event     json.RawMessage `json:"event"`
	Signature []byte          `json:"signature"`
	// Openings are the texts that Event.Committed stands for. Whoever hands the entry on can leave them out.
	Openings map[string]Opening `json:"openings,omitempty"`
}

// Opening is what a commitment was made of.
type Opening struct {
	// Salt is random, so that nobody finds a text by trying: SaltBytes.
	Salt []byte `json:"salt"`
	Text string `json:"text"`
}

// SaltBytes is the length of a salt, maxText what is kept of a text, bytes.
const (
	SaltBytes = 32
	maxText   = 4096
)

// Commit is the digest that stands for a text.
func (o Opening) Commit() []byte {
	h := sha256.New()
	h.Write([]byte("manis.detail/1\x00"))
	h.Write(o.Salt)
	h.Write([]byte(o.Text))
	return h.Sum(nil)
}

// private are the details that are committed to: they quote requests, which can have anything in their arguments and
// environment.
var private = map[string]bool{"reason": true}

// context separates these signatures from others by the same key.
const context = "manis.event/1\x00"

// Log is a log that grows.
type Log struct {
	key ed25519.PrivateKey

	mu       sync.Mutex
	previous []byte
	entries  [][]byte
	denials  int
	closed   bool
}

// New begins the log of a machine with this manifest.
func New(key ed25519.PrivateKey, manifest []byte) *Log {
	return &Log{key: key, previous: slices.Clone(manifest)}
}

// Add writes an event. After Closed there are no more.
func (l *Log) Add(kind string, what map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.entries) >= MaxEvents {
		return
	}
	if kind == Denied {
		switch l.denials++; {
		case l.denials == MaxDenials:
			l.add(Muted, nil)
			return
		case l.denials > MaxDenials:
			return
		}
	}
	if kind == Closed {
		what = map[string]string{"denials": fmt.Sprint(l.denials)}
		l.closed = true
	}
	l.add(kind, what)
}

func (l *Log) add(kind string, what map[string]string) {
	event := Event{Number: uint32(len(l.entries)), Previous: l.previous, Kind: kind}
	var entry Entry
	for name, text := range what {
		if !private[name] {
			put(&event.What, name, text)
			continue
		}
		o := Opening{Salt: make([]byte, SaltBytes), Text: strings.ToValidUTF8(text[:min(len(text), maxText)], "\uFFFD")}
		rand.Read(o.Salt)
		put(&event.Committed, name, o.Commit())
		put(&entry.Openings, name, o)
	}
	var err error
	if entry.Event, err = json.Marshal(event); err != nil {
		return // not for these types
	}
	entry.Signature = ed25519.Sign(l.key, append([]byte(context), entry.Event...))
	b, err := json.Marshal(entry)
	if err != nil {
		return
	}
	d := sha256.Sum256(entry.Event)
	l.previous, l.entries = d[:], append(l.entries, b)
}

func put[V any](m *map[string]V, name string, v V) {
	if *m == nil {
		*m = make(map[string]V)
	}
	(*m)[name] = v
}

// From returns up to limit entries from a number on.
func (l *Log) From(number, limit int) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number < 0 || number >= len(l.entries) {
		return nil
	}
	return slices.Clone(l.entries[number:min(number+limit, len(l.entries))])
}

// ErrUnfinished: a log has no end.
var ErrUnfinished = errors.New("the log has no end: it was cut off, or the machine was")

// Verify checks a whole log and returns its events. With ErrUnfinished they are returned, too.
func Verify(entries []json.RawMessage, signer ed25519.PublicKey, manifest []byte) ([]Event, error) {
	if len(entries) > MaxEvents {
		return nil, fmt.Errorf("the log has %d events, more than %d", len(entries), MaxEvents)
	}
	previous := manifest
	var events []Event
	for i, raw := range entries {
		var entry Entry
		var event Event
		if err := strict(raw, &entry); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		if !ed25519.Verify(signer, append([]byte(context), entry.Event...), entry.Signature) {
			return nil, fmt.Errorf("event %d: it is not signed by the machine of the evidence: it was changed", i)
		}
		if err := strict(entry.Event, &event); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		switch {
		case int(event.Number) != i:
			return nil, fmt.Errorf("event %d: it has number %d: events are missing or in another order", i, event.Number)
		case !bytes.Equal(event.Previous, previous):
			return nil, fmt.Errorf("event %d: it does not follow the one before: events are missing or of another log", i)
		case len(events) > 0 && events[len(events)-1].Kind == Closed:
			return nil, fmt.Errorf("event %d: it comes after the end", i)
		}
		if err := event.open(entry.Openings); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		d := sha256.Sum256(entry.Event)
		previous, events = d[:], append(events, event)
	}
	if len(events) == 0 || events[len(events)-1].Kind != Closed {
		return events, ErrUnfinished
	}
	return events, nil
}

// open puts the texts that commitments stand for in their place.
func (e *Event) open(openings map[string]Opening) error {
	for name := range openings {
		if e.Committed[name] == nil {
			return fmt.Errorf("it opens %.40q, which the machine has not committed to", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Committed)) {
		if _, both := e.What[name]; both {
			return fmt.Errorf("it has %.40q twice", name)
		}
		o, ok := openings[name]
		switch {
		case !ok:
			e.Withheld = append(e.Withheld, name)
		case len(o.Salt) != SaltBytes || !bytes.Equal(o.Commit(), e.Committed[name]):
			return fmt.Errorf("%.40q is not the text that the machine has committed to: it was changed", name)
		default:
			put(&e.What, name, o.Text)
		}
	}
	return nil
}

// Withhold takes the texts out of entries, of which commitments stay: the log verifies as before.
func Withhold(entries []json.RawMessage) error {
	for i, raw := range entries {
		var entry Entry
		if err := strict(raw, &entry); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
		entry.Openings = nil
		b, err := json.Marshal(entry)
		if err != nil {
			return err
		}
		entries[i] = b
	}
	return nil
}

func strict(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(to)
}
