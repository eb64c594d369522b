package debimage

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const busyboxPackage = "busybox-static"

// findBusybox returns an installed static busybox.
func findBusybox() (string, error) {
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if static(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: no static busybox installed (apt-get install %s)", ErrUnavailable, busyboxPackage)
}

// static says whether a file is an executable that needs no dynamic linker.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return f.Type == elf.ET_EXEC || f.Type == elf.ET_DYN
}

// buildBusybox puts the binary, its names and the few files that programs look for into one
// layer whose bytes depend on the binary only. It needs no root: the tree exists only as a list.
func buildBusybox(ctx context.Context, r Recipe, work string) (v1.Image, error) {
	binary, err := findBusybox()
	if err != nil {
		if binary, err = downloadBusybox(ctx, work); err != nil {
			return nil, err
		}
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	list, err := exec.CommandContext(ctx, binary, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its names: %w", binary, err)
	}
	var t virtualTree
	for _, dir := range []string{"bin", "sbin", "usr", "usr/bin", "usr/sbin", "dev", "etc", "home", "proc", "run", "sys", "var", "var/log", "var/www"} {
		t.dir(dir, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	t.dir("var/tmp", 0o1777)
	t.file("bin/busybox", 0o755, content)
	for name := range strings.FieldsSeq(string(list)) {
		// Only names in the directories above: no other is a command, and none may climb out.
		dir, base := filepath.Split(filepath.Clean("/" + name))
		if base == "busybox" || !strings.Contains("/bin/ /sbin/ /usr/bin/ /usr/sbin/", dir) {
			continue
		}
		t.link(dir[1:]+base, "/bin/busybox")
	}
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n"))
	t.file("etc/shadow", 0o640, []byte("root:*::0:99999:7:::\nwww-data:*::0:99999:7:::\nnobody:*::0:99999:7:::\n"))
	t.file("etc/hosts", 0o644, []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n"))
	layer, err := writeLayer(filepath.Join(work, "layer.tar.gz"), t.writeTo)
	if err != nil {
		return nil, err
	}
	return assemble(r.config(), layer)
}

// downloadBusybox unpacks the package without installing it, which an ordinary user may do.
func downloadBusybox(ctx context.Context, work string) (string, error) {
	download := exec.CommandContext(ctx, "apt-get", "download", busyboxPackage)
	download.Dir = work
	if out, err := download.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: download %s: %w: %s", ErrUnavailable, busyboxPackage, err, tail(out))
	}
	packages, err := filepath.Glob(filepath.Join(work, busyboxPackage+"_*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d files", busyboxPackage, len(packages))
	}
	root := filepath.Join(work, "unpacked")
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", packages[0], root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack %s: %w: %s", packages[0], err, tail(out))
	}
	for _, name := range []string{"bin/busybox", "usr/bin/busybox"} {
		if path := filepath.Join(root, name); static(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s holds no static busybox", packages[0])
}

// tail returns the end of a tool's output, where its errors are.
func tail(out []byte) string {
	const most = 2000
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return strings.TrimSpace(string(out))
}
