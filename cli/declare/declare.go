// Package declare turns what a user types, and what an image says about
// itself, into a container's configuration: docker's flags, their defaults, their
// checks, and docker's rules of who overrides whom. It starts nothing and makes
// nothing; it knows neither stores nor VMs.
package declare

import (
	"encoding/json"
	"fmt"
	"time"
)

// Image is the part of an image that matters to a container made from it.
type Image struct {
	Reference string // as the user gave it
	ID        string // config digest
	Platform  string // linux/amd64
	Config    ImageConfig
}

// ImageConfig is the "config" object of an image, with docker's additions to the
// OCI format.
type ImageConfig struct {
	User         string
	ExposedPorts map[string]struct{}
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      map[string]struct{}
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	Healthcheck  *ImageHealth
	Shell        []string
}

// ImageHealth is docker's HEALTHCHECK. Zero values are not set.
type ImageHealth struct {
	Test          []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// ParseImageConfig reads the "config" object out of an image's configuration.
func ParseImageConfig(raw []byte) (ImageConfig, error) {
	var file struct {
		Config ImageConfig `json:"config"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return ImageConfig{}, fmt.Errorf("read image configuration: %w", err)
	}
	return file.Config, nil
}
