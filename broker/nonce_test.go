package broker

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A nonce is good until its time, for one answer, from the broker that gave it, as it was given. Those that nobody answers leave nothing.
func TestNonces(t *testing.T) {
	n, now := newNonces(), time.Unix(1e9, 0)
	first := n.give(now)
	for range 3 * maxSpent {
		n.give(now)
	}
	if len(n.spent) != 0 {
		t.Errorf("%d of those that were only given are remembered", len(n.spent))
	}
	for at := range first {
		b := append([]byte(nil), first...)
		b[at] ^= 1
		if err := n.good(b, now); !errors.Is(err, errNonce) {
			t.Fatalf("with another byte %d: %v", at, err)
		}
	}
	for name, err := range map[string]error{
		"another broker's": n.good(newNonces().give(now), now),
		"cut":              n.good(first[:nonceSize-1], now),
		"longer":           n.good(append(first[:nonceSize:nonceSize], 0), now),
		"empty":            n.good(nil, now),
		"late":             n.good(first, now.Add(nonceTime+time.Second)),
	} {
		if !errors.Is(err, errNonce) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := n.good(first, now.Add(nonceTime)); err != nil {
		t.Error(err)
	}

	var taken atomic.Int32
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if n.spend(first, now) == nil {
				taken.Add(1)
			}
		})
	}
	all.Wait()
	if taken.Load() != 1 {
		t.Errorf("one nonce was good for %d answers", taken.Load())
	}
	for range maxSpent - 1 {
		if err := n.spend(n.give(now), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.spend(n.give(now), now); !errors.Is(err, errSpent) {
		t.Errorf("one too many: %v", err)
	}
	later := now.Add(nonceTime + time.Second)
	if err := n.spend(n.give(later), later); err != nil || len(n.spent) != 1 {
		t.Errorf("later: %v, and %d are remembered", err, len(n.spent))
	}
}
