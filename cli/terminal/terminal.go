// Package terminal is the user's terminal: whether there is one, its size, raw
// mode and the way back from it, the keys that detach, and colours. It knows
// nothing of containers.
package terminal

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Is reports whether f is a terminal.
func Is(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// Size returns the terminal's size, 0 and 0 when f is none.
func Size(f *os.File) (rows, columns uint32) {
	if f == nil {
		return 0, 0
	}
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil || w < 0 || h < 0 {
		return 0, 0
	}
	return uint32(h), uint32(w)
}

// Raw hands every key to the reader, Ctrl-C too. restore brings the terminal
// back; it may be called more than once.
func Raw(f *os.File) (restore func(), err error) {
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set terminal to raw mode: %w", err)
	}
	return func() { term.Restore(int(f.Fd()), old) }, nil
}

// Resizes calls resized with the terminal's size, and again at each change until
// ctx ends.
func Resizes(ctx context.Context, f *os.File, resized func(rows, columns uint32)) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if rows, columns := Size(f); rows > 0 && columns > 0 {
			resized(rows, columns)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// Colour is a terminal's way to print text.
type Colour string

const (
	Bold   Colour = "1"
	Faint  Colour = "2"
	Red    Colour = "31"
	Green  Colour = "32"
	Yellow Colour = "33"
	Blue   Colour = "34"
	Cyan   Colour = "36"
)

// Painter colours text, or leaves it alone.
type Painter bool

// Paints decides for a file: only a terminal, and not against the user's wish
// (NO_COLOR, or a terminal called dumb).
func Paints(f *os.File) Painter {
	return Painter(Is(f) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

// Paint returns s in the colour.
func (p Painter) Paint(c Colour, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}
