package vmmtest

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait for a guest: it is only reached when something
// hangs, and generous because many tests may share a machine without KVM.
const patience = 2 * time.Minute

// Guest talks to the test guest.
type Guest struct {
	conn net.Conn
	r    *bufio.Reader
}

// NewGuest talks on a VM's agent connection.
func NewGuest(conn net.Conn) *Guest { return &Guest{conn, bufio.NewReader(conn)} }

// Try sends a request and returns the answer; see the guest's source for the verbs.
func (g *Guest) Try(format string, args ...any) (string, error) {
	if err := g.send(format, args...); err != nil {
		return "", err
	}
	return g.receive()
}

func (g *Guest) send(format string, args ...any) error {
	g.conn.SetDeadline(time.Now().Add(patience))
	_, err := fmt.Fprintf(g.conn, format+"\n", args...)
	return err
}

func (g *Guest) receive() (string, error) {
	line, err := g.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	answer, err := strconv.Unquote(strings.TrimSpace(line))
	if err != nil {
		return "", fmt.Errorf("answer %q: %w", line, err)
	}
	if message, ok := strings.CutPrefix(answer, "error: "); ok {
		return "", &guestError{message}
	}
	return answer, nil
}

// guestError is an error of the guest's, where the connection works.
type guestError struct{ message string }

func (e *guestError) Error() string { return e.message }

// Ask is Try that must succeed.
func (g *Guest) Ask(t testing.TB, format string, args ...any) string {
	t.Helper()
	answer, err := g.Try(format, args...)
	if err != nil {
		t.Fatalf("ask the guest to %s: %v", fmt.Sprintf(format, args...), err)
	}
	return answer
}

// Refused is Try that must fail with an error that contains what.
func (g *Guest) Refused(t testing.TB, what, format string, args ...any) {
	t.Helper()
	answer, err := g.Try(format, args...)
	if err == nil {
		t.Errorf("%s: answered %q, want an error", fmt.Sprintf(format, args...), answer)
	} else if !strings.Contains(err.Error(), what) {
		t.Errorf("%s: error %v, want %q", fmt.Sprintf(format, args...), err, what)
	}
}
