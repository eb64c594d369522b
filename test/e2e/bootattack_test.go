package e2e

import (
	"bytes"
	"context"
	"debug/pe"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"manis/place"
)

// TestConfidentialBoot has real machines boot what is not the reference's: each gets no secret, and the broker's log says so. What
// boots unchanged, TestConfidential shows to get it.
func TestConfidentialBoot(t *testing.T) {
	c := newConfidential(t)
	url := c.serve("--test-secret", "greeting="+c.at("greeting"))
	command := []string{"box", "cat", "/run/greeting"}
	flags := c.sign("boot", "owner", append([]string{"--calls", "logs", "--secret", "greeting=/run/greeting", "--broker-url", url, "--broker-key", c.at("broker.pub")}, command...)...)
	run := c.runWith(append(flags, "--rm", "--audit-bundle", c.at("bundle.json")), command...)
	kernel, initrd, err := (&place.Guest{Dir: guestDir()}).Measured()
	if err != nil {
		t.Fatal(err)
	}
	// refused runs the machine and expects the broker to name a register.
	refused := func(t *testing.T, cmd *exec.Cmd, register string) {
		t.Helper()
		before, _ := os.ReadFile(c.at("broker.log"))
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if err == nil || strings.Contains(stdout.String(), "hello") || !strings.Contains(stderr.String(), register) {
			t.Fatalf("it ended with %v, and said %q %q; want a refusal for %s", err, stdout.String(), stderr.String(), register)
		}
		after, _ := os.ReadFile(c.at("broker.log"))
		if fresh := strings.TrimPrefix(string(after), string(before)); !strings.Contains(fresh, `refused`) || !strings.Contains(fresh, register) {
			t.Errorf("the broker's log has no refusal for %s: %q", register, fresh)
		}
		if err := os.Remove(c.at("bundle.json")); err != nil {
			t.Errorf("the machine's evidence was not kept: %v", err)
		}
	}
	with := func(kernelChange, initrdChange func([]byte) []byte) *exec.Cmd {
		t.Helper()
		dir := t.TempDir()
		for path, change := range map[string]func([]byte) []byte{
			kernel: kernelChange, initrd: initrdChange, filepath.Join(guestDir(), "vmlinuz"): nil, filepath.Join(guestDir(), "initramfs"): nil,
		} {
			to := filepath.Join(dir, filepath.Base(path))
			if change == nil {
				if err := os.Symlink(path, to); err != nil {
					t.Fatal(err)
				}
				continue
			}
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(to, change(b), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		cmd := c.command(context.Background(), run...)
		cmd.Env = append(cmd.Env, "MANIS_GUEST="+dir)
		return cmd
	}
	t.Run("kernel", func(t *testing.T) { refused(t, with(changeKernel(t), nil), "PCR 4") })
	t.Run("initial file system", func(t *testing.T) {
		refused(t, with(nil, func(b []byte) []byte {
			if !bytes.HasPrefix(b, []byte("070701")) {
				t.Fatal("the initial file system is no cpio archive (cpio(5), newc)")
			}
			b[53] = '1' // the time of its first entry: the same programs run, at the same place in memory
			return b
		}), "PCR 9")
	})
	t.Run("firmware", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root puts another file over the firmware, in a namespace of its own")
		}
		firmware, err := place.FindFirmware()
		if err != nil {
			t.Fatal(err)
		}
		// Firmware that measures nothing of what it boots.
		const other = "/usr/share/seabios/bios-256k.bin"
		if _, err := os.Stat(other); err != nil {
			t.Skip(err)
		}
		cmd := c.command(context.Background(), run...)
		shell := exec.Command("unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$1" "$2" && shift 2 && exec "$@"`, "sh", other, firmware}, cmd.Args...)...)
		shell.Env, shell.Dir = cmd.Env, cmd.Dir
		refused(t, shell, "PCR")
	})
	t.Run("expired manifest", func(t *testing.T) {
		late := c.sign("late", "owner", append([]string{"--valid", "-1h", "--calls", "logs"}, command...)...)
		c.in(t).fails(126, "expires: it was valid until", c.runWith(append(late, "--rm"), command...)...)
	})
}

// changeKernel changes a byte of a kernel that is never executed nor read: of its last section's padding, or where there is none behind the
// whole file.
func changeKernel(t *testing.T) func([]byte) []byte {
	return func(b []byte) []byte {
		f, err := pe.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, s := range f.Sections {
			if end := int(s.Offset + s.Size); end <= len(b) && end > 16 && bytes.Equal(b[end-16:end], make([]byte, 16)) {
				b[end-1] = 1
				return b
			}
		}
		return append(b, make([]byte, 16)...)
	}
}
