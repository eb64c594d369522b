package host

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"manis/host/memo"
)

// remembered is a trial with the key that it holds for; for another key
// nothing is known.
type remembered struct {
	Key   string `json:"key"`
	Trial Trial  `json:"trial"`
}

// subject names the file in the cache: one for each QEMU and guest kernel, by their
// paths, so that containers with different ones, such as those of the class
// confidential beside others, do not make each other try again.
func (a *Accelerators) subject(program string) string {
	sum := sha256.Sum256([]byte(program + "\x00" + a.Kernel))
	return "kvm-" + hex.EncodeToString(sum[:8])
}

// key stands for everything that may change whether KVM works: host kernel,
// processor, QEMU and guest kernel. Files count as changed when their inode,
// size or time did; reading 20 MB for each start would cost more than a trial saves.
func (a *Accelerators) key(program string) (string, error) {
	h := sha256.New()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	fmt.Fprintln(h, unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), processor())
	for _, path := range []string{program, a.Kernel} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return "", fmt.Errorf("try KVM with %s: %w", path, err)
		}
		fmt.Fprintln(h, path, st.Dev, st.Ino, st.Size, st.Mtim.Nano())
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// processor is the first processor's model with its microcode.
func processor() string {
	var words []string
	for line := range strings.Lines(cpuinfo()) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name", "stepping", "microcode":
			words = append(words, strings.TrimSpace(value))
		}
	}
	return strings.Join(words, " ")
}

// cpuinfo is what the kernel says of the first processor.
func cpuinfo() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 8<<10)
	n, _ := io.ReadFull(f, b)
	first, _, _ := strings.Cut(string(b[:n]), "\n\n")
	return first
}

// recall is what is known for a key.
func (a *Accelerators) recall(program, key string) (Trial, bool) {
	var r remembered
	ok := memo.Recall(a.Cache, a.subject(program), &r)
	return r.Trial, ok && r.Key == key
}

func (a *Accelerators) keep(program, key string, t Trial) {
	memo.Keep(a.Cache, a.subject(program), remembered{key, t})
}

// Forget makes the next question with this QEMU and this kernel try again.
func (a *Accelerators) Forget() {
	if in, err := a.Driver.Installation(); err == nil {
		memo.Forget(a.Cache, a.subject(in.Closure.Program))
	}
}
