//go:build !amd64

package tsc

func counter() int64 { return 0 }

func constant() bool { return false }

// Declared returns the frequency in kHz that the processor states, and whether it does.
func Declared() (int, bool) { return 0, false }
