package monitor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"manis/audit"
	"manis/broker"
	"manis/container"
	"manis/sandbox"
	"manis/trace"
	"manis/trust"
)

// Record is what a confidential machine has attested and logged, as far as its host keeps it in files: the audit bundle.
type Record struct {
	machine *sandbox.Sandbox
	trust   *container.Trust
	files   []string

	mu       sync.Mutex
	evidence []byte
	kept     int // events in the files so far
}

// NewRecord returns the record of a machine that has booted measured. The files need not be there, their directories do.
func NewRecord(machine *sandbox.Sandbox, t *container.Trust, files ...string) *Record {
	return &Record{machine: machine, trust: t, files: files}
}

// Admit has the manifest enforced in the machine, and carries the machine's evidence to the broker and the broker's answer back.
func (r *Record) Admit(ctx context.Context) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.evidence, err = admit(ctx, r.machine, r.trust)
	return err
}

// admit returns the evidence also with an error, as far as there is some.
func admit(ctx context.Context, s *sandbox.Sandbox, t *container.Trust) (evidence []byte, err error) {
	ctx, span := trace.Start(ctx, "attest")
	defer span.End()
	if err := s.Admit(ctx, t.Manifest, t.Owner); err != nil {
		return nil, err
	}
	manifest, err := trust.Peek(t.Manifest)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	if manifest.Broker == nil {
		return s.Attest(ctx, nonce)
	}
	url := t.Broker
	if url == "" {
		url = manifest.Broker.URL
	}
	client := broker.Client{URL: url}
	if nonce, err = client.Challenge(ctx); err != nil {
		return nil, err
	}
	if evidence, err = s.Attest(ctx, nonce); err != nil {
		return nil, err
	}
	answer, err := client.Release(ctx, evidence, t.Manifest)
	if err != nil {
		return evidence, err
	}
	return evidence, s.Release(ctx, answer)
}

// Keep writes the audit bundle as far as the machine tells it, or has told it before; without evidence there is none. That it
// cannot be kept ends nothing, and is said on stderr.
func (r *Record) Keep(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.evidence == nil || len(r.files) == 0 {
		return
	}
	bundle, err := readBundle(ctx, r.machine, r.trust, r.evidence)
	if len(bundle.Entries) >= r.kept { // else the machine is gone, and what it has told before is worth more
		r.kept = len(bundle.Entries)
		for _, path := range r.files {
			err = errors.Join(err, writeBundle(&bundle, path))
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "keep the audit bundle: %v\n", err)
	}
}

// bundleTime bounds the fetching of a log.
const bundleTime = 10 * time.Second

// readBundle makes the audit bundle of a machine from what it tells of its log; with an error it ends where that came.
func readBundle(ctx context.Context, s *sandbox.Sandbox, t *container.Trust, evidence []byte) (bundle audit.Bundle, err error) {
	ctx, cancel := context.WithTimeout(ctx, bundleTime)
	defer cancel()
	bundle = audit.Bundle{Format: audit.BundleFormat, Envelope: t.Manifest, Evidence: evidence}
	size := 0
	for len(bundle.Entries) < audit.MaxEvents {
		some, err := s.Events(ctx, uint32(len(bundle.Entries)))
		if err != nil {
			return bundle, fmt.Errorf("read the machine's audit log: %w", err)
		}
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			// A guest that lies is not to fill this host's memory or disk.
			if size += len(e); size > audit.MaxBundle/2 || !json.Valid(e) {
				return bundle, errors.New("read the machine's audit log: an event is not JSON, or there is too much of it")
			}
			bundle.Entries = append(bundle.Entries, e)
		}
	}
	return bundle, nil
}

// writeBundle replaces a file in one step.
func writeBundle(bundle *audit.Bundle, path string) error {
	b, err := json.Marshal(bundle)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
