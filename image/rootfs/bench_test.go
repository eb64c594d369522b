package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// typical makes the archive of a made-up distribution of about size bytes:
// many small files, few large ones, that compress about three times.
func typical(t testing.TB, size int) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4000)
	for i := range words {
		w := make([]byte, 2+r.IntN(10))
		for j := range w {
			w[j] = byte(r.IntN(256))
		}
		words[i] = w
	}
	var b bytes.Buffer
	b.Grow(size + size/8)
	w := tar.NewWriter(&b)
	for i := 0; b.Len() < size; i++ {
		if i%30 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/d%d/", i/30), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				t.Fatal(err)
			}
		}
		n := int(2000 * r.ExpFloat64())
		if i%40 == 0 {
			n = int(600_000 * r.ExpFloat64())
		}
		var data bytes.Buffer
		for data.Len() < n {
			data.Write(words[r.IntN(len(words))])
		}
		h := &tar.Header{Name: fmt.Sprintf("usr/share/d%d/file-%d", i/30, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(data.Len()), ModTime: time.Unix(int64(i), 0)}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// BenchmarkBuild converts a 100 MB image. Its MB/s are of uncompressed content,
// decompression, digests and hash tree included, and the sync to disk.
func BenchmarkBuild(b *testing.B) {
	plain := typical(b, 100<<20)
	for _, form := range []struct {
		name string
		data []byte
	}{{"gzip", gzipped(b, plain)}, {"zstd", zstded(b, plain)}, {"plain", plain}} {
		b.Run(form.name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportMetric(float64(len(plain))/float64(len(form.data)), "ratio")
			dir := b.TempDir()
			l := stored(form.data, plain)
			before := cpuTime()
			for i := 0; b.Loop(); i++ {
				f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := Build(b.Context(), f, []Layer{l}, Options{TempDir: dir}); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				f.Close()
				os.Remove(f.Name())
			}
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

// cpuTime is what this process has used so far, in nanoseconds: unlike the
// time on the clock it means something on a busy machine too.
func cpuTime() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
