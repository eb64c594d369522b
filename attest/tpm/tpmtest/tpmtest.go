// Package tpmtest starts a TPM in software for tests: the one that machines have (swtpm), without a machine.
package tpmtest

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"manis/attest"
	"manis/attest/tpm"
)

// New returns a TPM that lives as long as the test.
func New(t testing.TB) *tpm.TPM {
	t.Helper()
	return Open(t, Start(t))
}

// Open is a Manis agent's view of a TPM.
func Open(t testing.TB, conn transport.TPM) *tpm.TPM {
	t.Helper()
	made, err := tpm.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// Start starts a TPM that lives as long as the test, and returns the way to it.
func Start(t testing.TB) transport.TPM {
	t.Helper()
	path, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("swtpm is not installed (package swtpm)")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "tpm")
	cmd := exec.Command(path, "socket", "--tpm2", "--fd", "3", "--tpmstate", "dir="+t.TempDir(), "--flags", "not-need-init,startup-clear")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() {
		ours.Close() // ends it, too
		cmd.Process.Kill()
		cmd.Wait()
	})
	return transport.FromReadWriter(ours)
}

// Reference are values of a machine that exists in tests only.
func Reference() *attest.Reference {
	digest := func(s string) string {
		d := sha256.Sum256([]byte(s))
		return hex.EncodeToString(d[:])
	}
	return &attest.Reference{
		Format: attest.ReferenceFormat, Kernel: digest("kernel"), Initrd: digest("initrd"),
		Cmdline: "quiet tsc_early_khz=<number> initrd=initrd",
	}
}

// Cmdline is one that fits Reference.
const Cmdline = "quiet tsc_early_khz=2596120 initrd=initrd"

// Boot does to a TPM what firmware, kernel and agent of the machine do.
func Boot(t testing.TB, made *tpm.TPM, events map[int][][]byte) {
	t.Helper()
	for _, pcr := range attest.PCRs {
		for _, d := range events[pcr] {
			if err := made.Extend(pcr, d); err != nil {
				t.Fatal(err)
			}
		}
	}
}
