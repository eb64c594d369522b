package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sample() *Report {
	r := &Report{Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Rounds: 3, Versions: map[string]string{"manis": "<1>"}}
	for _, v := range []float64{30, 10, 20} {
		r.add("start", "to exit", "manis", "ms", false, v)
		r.add("start", "to exit", "runc", "ms", false, v*2)
	}
	r.add("stdio", "output", "manis", "MB/s", true, 0)
	r.add("memory", "monitor", "manis", "MB", false, 123.4)
	r.skip("all", "crun", errors.New("not\n installed"))
	r.skip("all", "crun", errors.New("not\n installed"))
	return r
}

func TestQuantiles(t *testing.T) {
	for name, c := range map[string]struct {
		samples        []float64
		least, mid, mx float64
	}{
		"one":   {[]float64{5}, 5, 5, 5},
		"odd":   {[]float64{3, 1, 2}, 1, 2, 3},
		"even":  {[]float64{4, 1, 2, 3}, 1, 2.5, 4},
		"equal": {[]float64{7, 7, 7}, 7, 7, 7},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Series{Samples: c.samples}
			if s.min() != c.least || s.median() != c.mid || s.max() != c.mx {
				t.Errorf("%v %v %v", s.min(), s.median(), s.max())
			}
		})
	}
}

// A p99 takes a hundred samples; of fewer it is the most, and that is said.
func TestTail(t *testing.T) {
	for _, c := range []struct {
		n        int
		p90, p99 float64
		known    [2]bool
	}{
		{1, 1, 1, [2]bool{}},
		{5, 5, 5, [2]bool{}},
		{9, 9, 9, [2]bool{}},
		{10, 9, 10, [2]bool{true, false}},
		{20, 18, 20, [2]bool{true, false}},
		{99, 90, 99, [2]bool{true, false}},
		{100, 90, 99, [2]bool{true, true}},
		{200, 180, 198, [2]bool{true, true}},
	} {
		s := new(Series)
		for i := range c.n {
			s.Samples = append(s.Samples, float64(c.n-i))
		}
		p90, known90 := s.tail(0.9)
		p99, known99 := s.tail(0.99)
		if p90 != c.p90 || p99 != c.p99 || known90 != c.known[0] || known99 != c.known[1] {
			t.Errorf("of %d: %v %v, %v %v", c.n, p90, known90, p99, known99)
		}
	}
	if v, known := new(Series).tail(0.9); v != 0 || known {
		t.Errorf("of none: %v %v", v, known)
	}
}

// Failures that are alike are counted, not repeated.
func TestFailures(t *testing.T) {
	r := new(Report)
	r.fail("burst", "50 at once", "manis", withoutName(errors.New("bench-1-2: it\n broke")))
	r.fail("burst", "50 at once", "manis", withoutName(errors.New("bench-1-3: it broke")))
	r.fail("burst", "50 at once", "manis", errors.New("other"))
	if len(r.Failures) != 2 || r.Failures[0].Count != 2 || r.Failures[0].Error != "NAME: it broke" || r.Failures[1].Count != 1 {
		t.Errorf("%+v", r.Failures)
	}
	var b bytes.Buffer
	if err := r.table(&b); err != nil || !strings.Contains(b.String(), "manis, 50 at once, 2 times: NAME: it broke") {
		t.Error(b.String())
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := sample().table(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"Start of a container", "  to exit, ms\n    manis                                        20.0      *30.0      *30.0       10.0       30.0     3\n",
		"  * the most of all: there are too few", "manis / runc                                 0.50",
		"123        123", "  crun, all: not installed\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Count(text, "crun") != 1 || strings.Index(text, "Memory") > strings.Index(text, "Standard streams") {
		t.Errorf("order or repetition:\n%s", text)
	}
}

func TestPageAndNumbers(t *testing.T) {
	dir := t.TempDir()
	data, page, err := sample().save(filepath.Join(dir, "results"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "&lt;1&gt;", "20.0 ms", "2 January 2026", "not installed"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "ZgotmplZ", "http://", "https://", "<script"} {
		if strings.Contains(string(text), bad) {
			t.Errorf("%q in the page", bad)
		}
	}
	numbers, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(numbers, &back); err != nil || len(back.Series) != 4 || len(back.Series[0].Samples) != 3 {
		t.Errorf("%v, %v", back, err)
	}
}

func TestAxis(t *testing.T) {
	for top, want := range map[float64]float64{0: 1, 1: 0.2, 5: 1, 9: 2, 12: 2, 99: 20, 350: 100, 40000: 10000} {
		if step := niceStep(top); step < want*0.999 || step > want*1.001 {
			t.Errorf("axis to %v has steps of %v, want %v", top, step, want)
		}
	}
}

// A large mapping of an anonymous file counts as a guest's memory, its touched part only.
func TestGuestMemory(t *testing.T) {
	_, before, err := pss(os.Getpid())
	if err != nil {
		t.Skip(err)
	}
	fd, err := unix.MemfdCreate("ram", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 2*minRAM); err != nil {
		t.Fatal(err)
	}
	ram, err := unix.Mmap(fd, 0, 2*minRAM, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(ram)
	const touched = 4 << 20
	for i := 0; i < touched; i += 4096 {
		ram[i] = 1
	}
	all, after, err := pss(os.Getpid())
	if err != nil || after-before < touched || after-before > 2*touched || all < after {
		t.Errorf("guest memory %d of %d, %v", after-before, all, err)
	}
}

func TestDescendants(t *testing.T) {
	var list []int
	for _, pid := range descendants(os.Getpid()) {
		list = append(list, pid)
	}
	if len(list) == 0 {
		t.Error("this process is not among its own descendants")
	}
}
