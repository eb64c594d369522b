package dump

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Key is an installation's secret. Who has it can have any code executed in the jails of the
// installation's machines.
type Key []byte

const (
	keyName = "checkpoint.key"
	keySize = 32
)

// OpenKey reads the key of the installation that keeps its data in root, and makes one the first time.
func OpenKey(root string) (Key, error) {
	path := filepath.Join(root, keyName)
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(root, path); err == nil {
			key, err = readKey(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the key of checkpoints: %w", err)
	}
	return key, nil
}

func readKey(path string) (Key, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Size != keySize {
		return nil, fmt.Errorf("%s is not a file of %d bytes of this user's alone (remove it: a new one is made, and checkpoints of before are of no use)", path, keySize)
	}
	key := make(Key, keySize)
	_, err = f.ReadAt(key, 0)
	return key, err
}

// makeKey makes a key that is there as a whole or not at all; the first of several to make one does.
func makeKey(root, path string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(root, ".new-key-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	key := make([]byte, keySize)
	rand.Read(key)
	_, err = tmp.Write(key)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// A manifest's file is a line with the authentication code of the rest, and the rest. No file of
// CRIU's begins so.
const word = "manis checkpoint "

func (k Key) code(body []byte) []byte {
	h := hmac.New(sha256.New, k)
	h.Write([]byte(word))
	h.Write(body)
	return h.Sum(nil)
}

func (k Key) seal(body []byte) []byte {
	return append([]byte(word+hex.EncodeToString(k.code(body))+"\n"), body...)
}

// errForeign says of an image whose origin cannot be trusted what that means.
var errForeign = errors.New("it was not made by this installation of manis, or was changed since; to continue it would be to execute what is in it, " +
	"so only checkpoints that were made here, by the same user with the same data directory, are restored")

// open returns what was sealed.
func (k Key) open(file []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(file, []byte(word))
	if !ok {
		return nil, errors.New("it is no checkpoint of manis (those of other runtimes are of processes, not of machines)")
	}
	head, body, _ := bytes.Cut(rest, []byte("\n"))
	if !hmac.Equal(head, []byte(hex.EncodeToString(k.code(body)))) {
		return nil, errForeign
	}
	return body, nil
}
