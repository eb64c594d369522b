package pod

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pair is a connection of two ends.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func TestMessages(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	long := strings.Repeat("x", 1<<20)
	go func() {
		send(a, request{Verb: long}, w)
		w.Close()
		send(a, request{Verb: "second"})
		a.Close()
	}()
	var m request
	files, err := receive(b, &m)
	if err != nil || m.Verb != long || len(files) != 1 {
		t.Fatalf("%d bytes, %d files, %v", len(m.Verb), len(files), err)
	}
	files[0].WriteString("through")
	files[0].Close()
	buf := make([]byte, 16)
	if n, _ := r.Read(buf); string(buf[:n]) != "through" {
		t.Errorf("read %q", buf[:n])
	}
	if files, err := receive(b, &m); err != nil || m.Verb != "second" || len(files) != 0 {
		t.Errorf("%q, %v", m.Verb, err)
	}
	if _, err := receive(b, &m); err == nil {
		t.Error("no error at the end")
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(append(binary.BigEndian.AppendUint32(nil, 14), `{"verb":"kill"}`...))
	f.Fuzz(func(t *testing.T, b []byte) {
		theirs, ours := pair(t)
		go func() {
			theirs.Write(b)
			theirs.Close()
		}()
		var r request
		files, err := receive(ours, &r)
		if len(files) != 0 {
			t.Error("descriptors from nowhere")
		}
		if err == nil && (len(b) < 4 || int(binary.BigEndian.Uint32(b)) > len(b)-4) {
			t.Errorf("%q was taken", b)
		}
	})
}

// TestStreams copies through pipes whose reader stops, and gives up when told so.
func TestStreams(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d, err := newDescriptor(w)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB, more than a pipe holds
	result := make(chan error, 1)
	go func() { _, err := d.Write(data); result <- err }()
	got := make([]byte, 100000)
	if _, err := r.Read(got); err != nil {
		t.Fatal(err)
	}
	d.interrupt()
	if err := <-result; err != errInterrupted {
		t.Errorf("an interrupted write: %v", err)
	}
	if flags, err := unix.FcntlInt(r.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the caller's pipe has flags %x, %v", flags, err)
	}
	d.close()

	r2, w2, _ := os.Pipe()
	in, err := newDescriptor(r2)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, err := in.Read(make([]byte, 10)); result <- err }()
	in.interrupt()
	if err := <-result; err != errInterrupted {
		t.Errorf("an interrupted read: %v", err)
	}
	w2.Close()
	in.close()
}
