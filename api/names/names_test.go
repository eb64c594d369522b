package names

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	sent := []Frame{{Number: 1, Message: []byte("a")}, {Number: 1<<32 - 1, TCP: true, Message: make([]byte, MaxMessage)}, {Number: 7}}
	for i := range sent {
		if err := Write(&b, &sent[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range sent {
		got, err := Read(&b)
		if err != nil || got.Number != want.Number || got.TCP != want.TCP || !bytes.Equal(got.Message, want.Message) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	if _, err := Read(&b); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestBadFrames(t *testing.T) {
	if err := Write(io.Discard, &Frame{Message: make([]byte, MaxMessage+1)}); err == nil {
		t.Error("a message was written that is too long")
	}
	for name, b := range map[string]string{
		"another protocol": "\x00\x00\x00\x01\x02\x00\x01a",
		"half a head":      "\x00\x00",
		"half a message":   "\x00\x00\x00\x01\x00\x00\x02a",
	} {
		if f, err := Read(bytes.NewReader([]byte(b))); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}
