package qemu

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"manis/guest/initramfs"
	"manis/vmm"
)

func TestThin(t *testing.T) {
	bin := t.TempDir() + "/guest"
	initrd := os.Getenv("INITRD")
	if initrd == "" {
		initrd = bin + ".cpio"
		cmd := exec.Command("go", "build", "-o", bin, "manis/vmm/vmmtest/guest")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
		b, _ := os.ReadFile(bin)
		f, _ := os.Create(bin + ".cpio")
		if err := initramfs.Write(f, b); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d := New("")
	for range 2 {
		v, err := d.Start(ctx, vmm.Config{Kernel: "../../guest/image/vmlinuz", Initrd: initrd, MemoryBytes: 256 << 20})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		v.Agent().Write([]byte("echo hi\n"))
		v.Agent().SetReadDeadline(time.Now().Add(10 * time.Second))
		line, err := bufio.NewReader(v.Agent()).ReadString('\n')
		t.Log(line, err, time.Since(begun))
		t.Logf("%+v", v.Info())
		t.Logf("%s", v.Console())
		if os.Getenv("WAIT") != "" {
			fmt.Println(v.Info().PID)
			time.Sleep(20 * time.Second)
		}
		t.Log(v.Kill(), v.Exit())
	}
}
