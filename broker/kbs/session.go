package kbs

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"manis/broker"
)

// Bounds of sessions.
const (
	// sessionTime is how long a challenge can be answered, and how long resources can be asked for afterwards.
	sessionTime = 5 * time.Minute
	maxSessions = 10000
	// maxOfPeer are those of one address, so that it does not keep others out.
	maxOfPeer = 1000
	// maxUses are requests in an attested session: each is a line of the log.
	maxUses = 256
)

// session is one between a challenge and the end of its time.
type session struct {
	peer  string
	nonce []byte
	until time.Time

	// Of attested sessions.
	key      *teeKey
	manifest []byte
	machine  *broker.Machine
	uses     int
}

func (s *session) nonceText() string { return base64.StdEncoding.EncodeToString(s.nonce) }

// digest names a session to everybody but who holds its id.
type digest [sha256.Size]byte

func digestOf(id string) digest { return sha256.Sum256([]byte("manis kbs session\x00" + id)) }

// sessions are all that are open. Whoever takes a session out of it owns it.
type sessions struct {
	mu   sync.Mutex
	all  map[digest]*session
	peer map[string]int // sessions of each address
}

func newSessions() *sessions {
	return &sessions{all: make(map[digest]*session), peer: make(map[string]int)}
}

// open begins one with a new nonce.
func (s *sessions) open(peer string, now time.Time) (string, *session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full(peer) {
		for d, old := range s.all {
			if now.After(old.until) {
				s.remove(d, old)
			}
		}
		if s.full(peer) {
			return "", nil, errors.New("too many sessions are open: try again in a few minutes")
		}
	}
	b := make([]byte, 64)
	rand.Read(b)
	id, made := hex.EncodeToString(b[:32]), &session{peer: peer, nonce: b[32:], until: now.Add(sessionTime)}
	s.add(digestOf(id), made)
	return id, made, nil
}

func (s *sessions) full(peer string) bool {
	return len(s.all) >= maxSessions || s.peer[peer] >= maxOfPeer
}

func (s *sessions) add(d digest, made *session) {
	s.all[d] = made
	s.peer[made.peer]++
}

func (s *sessions) remove(d digest, old *session) {
	delete(s.all, d)
	if s.peer[old.peer]--; s.peer[old.peer] <= 0 {
		delete(s.peer, old.peer)
	}
}

// take removes a session with a challenge that can still be answered, and with it the challenge; nil: there is none.
func (s *sessions) take(id string, now time.Time) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digestOf(id)
	found := s.all[d]
	if found == nil || found.machine != nil {
		return nil
	}
	s.remove(d, found)
	if now.After(found.until) {
		return nil
	}
	return found
}

// attested puts one back whose machine is known now.
func (s *sessions) attested(id string, made *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(digestOf(id), made)
}

// use is an attested session for one more request; nil: there is none, or it is used up. What it returns is read only.
func (s *sessions) use(d digest, now time.Time) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.all[d]
	if found == nil || found.machine == nil {
		return nil
	}
	if found.uses++; found.uses > maxUses || now.After(found.until) {
		s.remove(d, found)
		return nil
	}
	return found
}
