package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Accepted are the ratios that were last accepted as Manis's start-up, as they are committed.
type Accepted struct {
	Date time.Time
	// Host is where they were measured. Ratios differ little between hosts, but they do.
	Host   Host
	Ratios []Ratio
}

func readAccepted(path string) (*Accepted, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the accepted ratios: %w (make bench-accept writes them)", err)
	}
	a := new(Accepted)
	if err := json.Unmarshal(text, a); err != nil {
		return nil, fmt.Errorf("read the accepted ratios: %s: %w", path, err)
	}
	return a, nil
}

func (a *Accepted) write(path string) error {
	text, err := json.MarshalIndent(a, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
