package witness

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"manis/audit/ledger"
)

func key(seed byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var logKey, witnessKey = key(1), key(2)

// scene is a witness, and who asks it.
func scene(t *testing.T, dir string) *Client {
	w, err := New(dir, witnessKey, ledger.LogKey(logKey.Public().(ed25519.PublicKey)))
	check(t, err)
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	return &Client{URL: server.URL, Key: w.Key()}
}

func open(t *testing.T, dir string) *ledger.Ledger {
	l, err := ledger.Open(dir, logKey)
	check(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func add(t *testing.T, l *ledger.Ledger, what string) {
	d := sha256.Sum256([]byte(what))
	_, err := l.Add(ledger.Entry{Kind: ledger.Bundle, Commitment: d[:]})
	check(t, err)
}

func TestWitness(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	client := scene(t, state)
	l := open(t, dir)
	for i := range 5 {
		add(t, l, fmt.Sprint(i))
		if i == 2 {
			client = scene(t, state) // a witness that was started again remembers
		}
		signed, err := client.Cosign(context.Background(), l)
		check(t, err)
		if c, err := ledger.OpenCheckpoint(signed, l.Key(), client.Key); err != nil || c.Size != int64(i+1) {
			t.Fatalf("got %+v, %v", c, err)
		}
	}
	// The same once more, and by who does not know what the witness has seen.
	_, err := client.Cosign(context.Background(), l)
	check(t, err)
	check(t, os.Remove(filepath.Join(dir, "witnessed")))
	add(t, l, "more")
	_, err = client.Cosign(context.Background(), l)
	check(t, err)

	t.Run("rolled back", func(t *testing.T) {
		old := open(t, t.TempDir())
		for i := range 3 {
			add(t, old, fmt.Sprint(i))
		}
		if _, err := client.Cosign(context.Background(), old); !errors.Is(err, ErrForked) || !strings.Contains(err.Error(), "rolled back") {
			t.Errorf("got %v", err)
		}
	})
	for name, n := range map[string]int{"forked": 6, "forked and longer": 9} {
		t.Run(name, func(t *testing.T) {
			fork := open(t, t.TempDir())
			for i := range n {
				add(t, fork, fmt.Sprint("fork", i))
			}
			if _, err := client.Cosign(context.Background(), fork); !errors.Is(err, ErrForked) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("a stranger's log", func(t *testing.T) {
		other, err := ledger.Open(t.TempDir(), key(9))
		check(t, err)
		defer other.Close()
		if _, err := client.Cosign(context.Background(), other); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an impostor of a witness", func(t *testing.T) {
		w, err := New(t.TempDir(), key(9), l.Key())
		check(t, err)
		server := httptest.NewServer(w)
		defer server.Close()
		impostor := &Client{URL: server.URL, Key: client.Key}
		if _, err := impostor.Cosign(context.Background(), l); err == nil || !errors.Is(err, ledger.ErrWitness) {
			t.Errorf("got %v", err)
		}
	})
	// None of them has changed what the witness goes on from.
	add(t, l, "last")
	_, err = client.Cosign(context.Background(), l)
	check(t, err)
}

func TestProtocol(t *testing.T) {
	client := scene(t, t.TempDir())
	l := open(t, t.TempDir())
	add(t, l, "a")
	signed := string(l.Checkpoint())
	post := func(body string) (int, string, string) {
		t.Helper()
		resp, err := http.Post(client.URL+path, "text/plain", strings.NewReader(body))
		check(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		check(t, err)
		return resp.StatusCode, string(b), resp.Header.Get("Content-Type")
	}
	for _, c := range []struct {
		name, body string
		want       int
	}{
		{"nothing", "", 400},
		{"no number", "old x\n\n" + signed, 400},
		{"no digest", "old 0\nxyz\n\n" + signed, 400},
		{"too long a proof", "old 0\n" + strings.Repeat(strings.Repeat("A", 43)+"=\n", 64) + "\n" + signed, 400},
		{"more than there is", "old 2\n\n" + signed, 400},
		{"too long", "old 0\n\n" + strings.Repeat("x", 1<<20), 400},
		{"changed", "old 0\n\n" + strings.Replace(signed, "\n1\n", "\n2\n", 1), 403},
		{"a stranger's", "old 0\n\nx" + signed, 404},
		{"another size", "old 1\n\n" + signed, 409},
		{"the first", "old 0\n\n" + signed, 200},
		{"the first again", "old 0\n\n" + signed, 409},
		{"the same", "old 1\n\n" + signed, 200},
	} {
		if got, text, kind := post(c.body); got != c.want || got == 409 && kind != sizeType {
			t.Errorf("%s: got %d %q (%s), want %d", c.name, got, text, kind, c.want)
		}
	}
	add(t, l, "b")
	if got, text, _ := post("old 1\n" + strings.Repeat("A", 43) + "=\n\n" + string(l.Checkpoint())); got != 422 {
		t.Errorf("a wrong proof: got %d %q", got, text)
	}
}

// FuzzRequest: a witness reads what anybody sends.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("old 1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\nmanis.log/x\n1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parse(b); err == nil && (r.old < 0 || len(r.proof) > maxProof) {
			t.Errorf("got %+v", r)
		}
	})
}
