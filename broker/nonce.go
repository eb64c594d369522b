package broker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"
	"time"
)

const (
	// nonceTime is for how long a nonce can be answered.
	nonceTime = 5 * time.Minute
	// maxSpent bounds the machines that are remembered to have answered, in that time.
	maxSpent = 10000
)

// nonces are what machines make evidence for. Nothing is remembered of one until a machine has answered it with evidence that is good, so
// that asking for them costs the broker no memory, and whoever asks for many keeps nobody out.
type nonces struct {
	key [sha256.Size]byte // of this process: what an earlier one gave is not good any more

	mu    sync.Mutex
	spent map[string]time.Time // until when each would be good
}

// A nonce is the time until when it is good, seconds since 1970 in big endian; random bytes; and a code of both.
const (
	nonceStamp  = 8
	nonceRandom = 16
	nonceSize   = nonceStamp + nonceRandom + sha256.Size
)

var (
	errNonce = errors.New("the evidence is not for a challenge of this broker, or was shown before, or too late")
	errSpent = errors.New("too many machines have shown evidence: try again in a few minutes")
)

func newNonces() *nonces {
	n := &nonces{spent: make(map[string]time.Time)}
	rand.Read(n.key[:])
	return n
}

// give makes one.
func (n *nonces) give(now time.Time) []byte {
	b := make([]byte, nonceStamp+nonceRandom, nonceSize)
	binary.BigEndian.PutUint64(b, uint64(now.Add(nonceTime).Unix()))
	rand.Read(b[nonceStamp:])
	return n.code(b)
}

// code appends the code of what a nonce begins with to it.
func (n *nonces) code(begin []byte) []byte {
	mac := hmac.New(sha256.New, n.key[:])
	mac.Write(begin)
	return mac.Sum(begin)
}

// until is when a nonce of this broker's ends; zero: it is not one.
func (n *nonces) until(nonce []byte) time.Time {
	const begin = nonceStamp + nonceRandom
	if len(nonce) != nonceSize || !hmac.Equal(n.code(nonce[:begin:begin]), nonce) {
		return time.Time{}
	}
	return time.Unix(int64(binary.BigEndian.Uint64(nonce)), 0)
}

// good returns an error for a nonce that cannot be answered, or not any more.
func (n *nonces) good(nonce []byte, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, spent := n.spent[string(nonce)]; spent || now.After(n.until(nonce)) {
		return errNonce
	}
	return nil
}

// spend takes one back, for which there is good evidence: each is good for one answer.
func (n *nonces) spend(nonce []byte, now time.Time) error {
	if err := n.good(nonce, now); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.spent) >= maxSpent {
		for old, until := range n.spent {
			if now.After(until) {
				delete(n.spent, old)
			}
		}
		if len(n.spent) >= maxSpent {
			return errSpent
		}
	}
	if _, spent := n.spent[string(nonce)]; spent {
		return errNonce
	}
	n.spent[string(nonce)] = n.until(nonce)
	return nil
}
