package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
)

// corpus are contents of very different kinds.
func corpus() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 700_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	var words strings.Builder
	for words.Len() < 1_000_000 {
		fmt.Fprintf(&words, "%s %d\n", []string{"alpha", "beta", "gamma", "delta"}[r.IntN(4)], r.IntN(1000))
	}
	skewed := make([]byte, 400_000) // long codes
	for i := range skewed {
		n := 0
		for n < 200 && r.IntN(3) > 0 {
			n++
		}
		skewed[i] = byte(n)
	}
	short := []byte{}
	for d := 1; d < 20; d++ { // matches at every small distance
		p := make([]byte, d)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		short = append(short, bytes.Repeat(p, 600/d)...)
	}
	far := append(append(bytes.Clone(random[:32768]), random[:32768]...), random[:300]...)
	self, _ := os.ReadFile("/proc/self/exe")
	return map[string][]byte{
		"nothing": {}, "one": {1}, "zeros": make([]byte, 3_000_000), "random": random, "words": []byte(words.String()),
		"skewed": skewed, "short distances": short, "far distances": far, "program": self[:min(len(self), 4<<20)],
		"mixed": bytes.Join([][]byte{random[:1000], []byte(words.String()[:100_000]), make([]byte, 70_000), random}, nil),
	}
}

func zip(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unzip(r io.Reader) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func TestRoundTrip(t *testing.T) {
	for name, content := range corpus() {
		t.Run(name, func(t *testing.T) {
			forms := map[string][]byte{}
			for _, level := range []int{gzip.NoCompression, gzip.BestSpeed, gzip.DefaultCompression, gzip.BestCompression, gzip.HuffmanOnly} {
				forms[fmt.Sprint("level ", level)] = zip(t, content, level)
			}
			if bin, err := exec.LookPath("gzip"); err == nil { // another compressor's habits
				cmd := exec.Command(bin, "-9c")
				cmd.Stdin = bytes.NewReader(content)
				if out, err := cmd.Output(); err == nil {
					forms["gzip -9"] = out
				}
			}
			for form, z := range forms {
				for how, r := range map[string]io.Reader{
					"whole": bytes.NewReader(z), "halves": iotest.HalfReader(bytes.NewReader(z)), "with the end": iotest.DataErrReader(bytes.NewReader(z)),
				} {
					got, err := unzip(r)
					if err != nil || !bytes.Equal(got, content) {
						t.Errorf("%s, read %s: %d bytes of %d, %v", form, how, len(got), len(content), err)
					}
				}
				if len(z) < 200_000 {
					if got, err := unzip(iotest.OneByteReader(bytes.NewReader(z))); err != nil || !bytes.Equal(got, content) {
						t.Errorf("%s, read by bytes: %v", form, err)
					}
				}
			}
		})
	}
}

func TestMembers(t *testing.T) {
	var all, z []byte
	for i := range 20 {
		p := bytes.Repeat([]byte{byte(i)}, i*50_000)
		all = append(all, p...)
		z = append(z, zip(t, p, i%9)...)
	}
	if got, err := unzip(bytes.NewReader(z)); err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes of %d, %v", len(got), len(all), err)
	}
}

func TestHeaders(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Name, w.Comment, w.Extra = strings.Repeat("n", 1000), "comment", bytes.Repeat([]byte("x"), 5000)
	io.WriteString(w, "hello")
	w.Close()
	if got, err := unzip(&b); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRefuses(t *testing.T) {
	good := zip(t, []byte(strings.Repeat("hello world, ", 1000)), 6)
	flip := func(at int) []byte {
		p := bytes.Clone(good)
		p[at] ^= 0xff
		return p
	}
	// A stream is its first block behind a plain header.
	stream := func(p ...byte) []byte { return append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, p...) }
	broken := errors.New("cable cut")
	tests := []struct {
		name string
		src  io.Reader
		want error
	}{
		{"nothing", strings.NewReader(""), io.ErrUnexpectedEOF},
		{"text", strings.NewReader("hello, this is text"), ErrHeader},
		{"half a header", bytes.NewReader(good[:5]), io.ErrUnexpectedEOF},
		{"header alone", bytes.NewReader(good[:10]), io.ErrUnexpectedEOF},
		{"no trailer", bytes.NewReader(good[:len(good)-8]), io.ErrUnexpectedEOF},
		{"half a trailer", bytes.NewReader(good[:len(good)-3]), io.ErrUnexpectedEOF},
		{"wrong checksum", bytes.NewReader(flip(len(good) - 8)), ErrChecksum},
		{"wrong length", bytes.NewReader(flip(len(good) - 1)), ErrChecksum},
		{"garbage behind", bytes.NewReader(append(bytes.Clone(good), "garbage, no header"...)), ErrHeader},
		{"half a header behind", bytes.NewReader(append(bytes.Clone(good), 0x1f)), io.ErrUnexpectedEOF},
		{"block type 3", bytes.NewReader(stream(0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0)), ErrCorrupt},
		{"stored length that is not confirmed", bytes.NewReader(stream(0x01, 5, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0)), ErrCorrupt},
		{"stored data cut", bytes.NewReader(stream(0x01, 5, 0, 0xfa, 0xff, 'a')), io.ErrUnexpectedEOF},
		{"distance before the start", bytes.NewReader(stream(0x03, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)), ErrCorrupt},
		{"source that fails", io.MultiReader(bytes.NewReader(good[:20]), iotest.ErrReader(broken)), broken},
		{"source that fails at once", iotest.ErrReader(broken), broken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := unzip(tt.src); !errors.Is(err, tt.want) {
				t.Errorf("got %d bytes, %v, want %v", len(got), err, tt.want)
			}
		})
	}
	t.Run("cut anywhere", func(t *testing.T) {
		for i := range good {
			if _, err := unzip(bytes.NewReader(good[:i])); err != io.ErrUnexpectedEOF {
				t.Fatalf("cut after %d bytes: %v", i, err)
			}
		}
	})
	t.Run("what came before is given out", func(t *testing.T) {
		z, err := NewReader(bytes.NewReader(flip(len(good) - 8)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != ErrChecksum || len(got) != 13_000 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, err := z.Read(make([]byte, 1)); err != ErrChecksum {
			t.Errorf("then %v", err)
		}
	})
}

// FuzzInflate compares with the standard library: what it accepts must come
// out the same here, and what it refuses must be refused.
func FuzzInflate(f *testing.F) {
	for _, p := range corpus() {
		for _, level := range []int{1, 6, gzip.HuffmanOnly} {
			f.Add(zip(f, p[:min(len(p), 3000)], level)[10:])
		}
	}
	header := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	f.Fuzz(func(t *testing.T, p []byte) {
		z := append(bytes.Clone(header), p...)
		got, err := limited(NewReader(bytes.NewReader(z)))
		std, stdErr := limited(gzip.NewReader(bytes.NewReader(z)))
		n := min(len(got), len(std))
		if !bytes.Equal(got[:n], std[:n]) || len(got) != len(std) && (err == nil || stdErr == nil) {
			t.Fatalf("%d bytes, the standard library has %d (%v, %v)", len(got), len(std), err, stdErr)
		}
		if (err == nil) != (stdErr == nil) {
			t.Fatalf("error %v, the standard library says %v", err, stdErr)
		}
	})
}

func limited[R io.Reader](r R, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	p, err := io.ReadAll(io.LimitReader(r, 4<<20))
	if err == nil && len(p) == 4<<20 {
		err = nil // both are cut here
	}
	return p, err
}

func BenchmarkInflate(b *testing.B) {
	for _, name := range []string{"words", "program", "random", "skewed"} {
		p := corpus()[name]
		z := zip(b, p, 6)
		b.Run(name+"/ours", func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			buf := make([]byte, 256<<10)
			for b.Loop() {
				r, err := NewReader(bytes.NewReader(z))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/standard", func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			buf := make([]byte, 256<<10)
			for b.Loop() {
				r, err := gzip.NewReader(bytes.NewReader(z))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
