package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"manis/image/fault"
)

// Host says how to reach one registry.
type Host struct {
	// Mirrors are asked first, in order: "https://mirror.example" or
	// "http://127.0.0.1:5000". Writing http is asking for plain HTTP.
	Mirrors []string `json:"mirrors,omitempty"`
	// Insecure allows plain HTTP for the registry itself.
	Insecure bool `json:"insecure,omitempty"`
}

// Hosts maps a registry, as it stands in image names ("docker.io"), to how to
// reach it.
type Hosts map[string]Host

// LoadHosts reads a registries.json:
//
//	{"docker.io": {"mirrors": ["http://127.0.0.1:5000"]}}
//
// A file that is not there means no entries.
func LoadHosts(path string) (Hosts, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the registry configuration: %w", err)
	}
	var h Hosts
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, fmt.Errorf("read the registry configuration %s: %v: %w", path, err, fault.ErrInvalid)
	}
	return h, nil
}
