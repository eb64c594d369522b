package tsc

import (
	"testing"
	"time"
)

func TestMeasurementsAgree(t *testing.T) {
	a, err := Measure(30 * time.Millisecond)
	if err == ErrUnknown {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := Measure(30 * time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	// Two results that differ by more than 0.1 % would make a guest's clock
	// drift by more than a minute a day.
	if diff := a - b; diff > a/1000 || diff < -a/1000 {
		t.Errorf("%d and %d kHz", a, b)
	}
	t.Logf("measured %d and %d kHz", a, b)
	if d, ok := Declared(); ok {
		t.Logf("declared %d kHz", d)
		if diff := a - d; diff > a/500 || diff < -a/500 {
			t.Errorf("measured %d kHz, declared %d kHz", a, d)
		}
	}
}
