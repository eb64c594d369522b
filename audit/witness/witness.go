// Package witness is somebody else who watches a ledger: a server that signs a checkpoint only if it continues the last one that it has
// signed, by the proof that comes with it, and so makes sure that everybody is shown the same log (C2SP tlog-witness and
// tlog-cosignature). It knows the logs that it watches by their keys, and nothing of what is in them.
package witness

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"manis/audit/ledger"
)

// path is where checkpoints are handed in.
const path = "/add-checkpoint"

// maxRequest bounds a request, maxProof the digests of its proof (tlog-witness).
const (
	maxRequest = ledger.MaxCheckpoint + 8<<10
	maxProof   = 63
)

// Witness is a server.
type Witness struct {
	dir  string
	key  ed25519.PrivateKey
	logs map[string]*ledger.Key // by origin

	mu sync.Mutex // one checkpoint after the other
}

// New makes a witness of these logs, which keeps what it has signed in a directory.
func New(dir string, key ed25519.PrivateKey, logs ...*ledger.Key) (*Witness, error) {
	if len(logs) == 0 {
		return nil, errors.New("the witness knows no log, and would refuse everybody")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the witness's directory: %w", err)
	}
	w := &Witness{dir: dir, key: key, logs: make(map[string]*ledger.Key)}
	for _, l := range logs {
		w.logs[l.Name()] = l
	}
	return w, nil
}

// Key is that by which its signatures are verified.
func (w *Witness) Key() *ledger.Key { return ledger.WitnessKey(w.key.Public().(ed25519.PublicKey)) }

// refusal is an answer that is no signature.
type refusal struct {
	status int
	text   string
	kind   string // of the content; empty: plain text
}

func (r *refusal) Error() string { return r.text }

// sizeType is the content type of an answer that says which size the witness has seen.
const sizeType = "text/x.tlog.size"

// ServeHTTP answers POST /add-checkpoint.
func (w *Witness) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != path:
		http.NotFound(out, r)
		return
	case r.Method != http.MethodPost:
		http.Error(out, "POST only", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(out, r.Body, maxRequest))
	if err != nil {
		http.Error(out, "the request is too long", http.StatusBadRequest)
		return
	}
	line, err := w.cosign(body)
	var no *refusal
	switch {
	case errors.As(err, &no):
		if no.kind != "" {
			out.Header().Set("Content-Type", no.kind)
		}
		out.WriteHeader(no.status)
		io.WriteString(out, no.text+"\n")
	case err != nil:
		http.Error(out, "the witness cannot keep what it signs", http.StatusInternalServerError)
		fmt.Fprintf(os.Stderr, "witness: %v\n", err)
	default:
		out.Write(line)
	}
}

// request is one that was read.
type request struct {
	old    int64
	proof  tlog.TreeProof
	signed []byte
}

// parse reads "old N", digests, an empty line, and a signed checkpoint.
func parse(body []byte) (*request, error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	number, isOld := strings.CutPrefix(lines[0], "old ")
	if !ok || !isOld || len(lines)-1 > maxProof {
		return nil, errors.New("the request is not one to add a checkpoint")
	}
	old, err := strconv.ParseInt(number, 10, 64)
	if err != nil || old < 0 || strconv.FormatInt(old, 10) != number {
		return nil, fmt.Errorf("the old size %.40q is no number", number)
	}
	r := &request{old: old, signed: signed}
	for _, l := range lines[1:] {
		h, err := tlog.ParseHash(l)
		if err != nil {
			return nil, fmt.Errorf("%.80q is no digest", l)
		}
		r.proof = append(r.proof, h)
	}
	return r, nil
}

// cosign decides, remembers, and signs, in this order: what was signed is never forgotten.
func (w *Witness) cosign(body []byte) ([]byte, error) {
	r, err := parse(body)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, err.Error(), ""}
	}
	origin, _, _ := strings.Cut(string(r.signed), "\n")
	log := w.logs[origin]
	if log == nil {
		return nil, &refusal{http.StatusNotFound, fmt.Sprintf("the log %.100q is none that this witness watches", origin), ""}
	}
	c, err := ledger.OpenCheckpoint(r.signed, log, nil)
	if err != nil {
		return nil, &refusal{http.StatusForbidden, err.Error(), ""}
	}
	if r.old > c.Size {
		return nil, &refusal{http.StatusBadRequest, fmt.Sprintf("the old size %d is more than the checkpoint's %d", r.old, c.Size), ""}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	file := w.file(log)
	last, err := w.last(file, log)
	if err != nil {
		return nil, err
	}
	if last.Size != r.old || last.Size == c.Size && last.Size > 0 && last.Root != c.Root {
		return nil, &refusal{http.StatusConflict, fmt.Sprint(last.Size), sizeType}
	}
	if last.Size > 0 {
		if err := ledger.Continues(last, c, r.proof); err != nil {
			return nil, &refusal{http.StatusUnprocessableEntity, err.Error(), ""}
		}
	}
	line, err := ledger.Cosign(r.signed, log, w.key)
	if err != nil {
		return nil, err
	}
	if err := ledger.WriteFile(file, r.signed); err != nil {
		return nil, err
	}
	return line, nil
}

// file is where the last checkpoint of a log is kept.
func (w *Witness) file(log *ledger.Key) string {
	d := sha256.Sum256([]byte(log.Name()))
	return filepath.Join(w.dir, hex.EncodeToString(d[:]))
}

// last is the checkpoint that was signed last; of a log that was never seen it is the zero one.
func (w *Witness) last(file string, log *ledger.Key) (*ledger.Checkpoint, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return new(ledger.Checkpoint), nil
	}
	if err != nil {
		return nil, err
	}
	c, err := ledger.OpenCheckpoint(b, log, nil)
	if err != nil {
		return nil, fmt.Errorf("what was kept of the log %s: %w", log.Name(), err)
	}
	return c, nil
}
