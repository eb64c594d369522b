package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"manis/container"
	"manis/place"
)

// miss is the message of a front end whose container found no machine: the size that it
// asked for.
type miss struct {
	Accel       string `json:"accel,omitempty"`
	MemoryBytes uint64 `json:"memoryBytes,omitempty"`
	MilliCPUs   uint64 `json:"milliCPUs,omitempty"`
	CPUSet      string `json:"cpuSet,omitempty"`
	Tap         bool   `json:"tap,omitempty"`
}

// maxMiss bounds the message.
const maxMiss = 4096

// Miss tells the pool with this directory, if somebody keeps one, that a container found no machine in
// it. It waits for nobody and cannot fail: a pool that is too busy to hear of it goes without.
func Miss(dir string, cfg *container.Config) {
	c := sizeOf(cfg)
	body, err := json.Marshal(miss{c.Accel, c.Resources.MemoryBytes, c.Resources.MilliCPUs, c.Resources.CPUSet, c.Network.Mode == TapMode})
	if err == nil {
		notify(dir, "/missed", body)
	}
}

// notify sends a message to who keeps the pool with this directory, and does not wait for an answer.
func notify(dir, resource string, body []byte) {
	path := filepath.Join(filepath.Dir(dir), place.PoolSocketName)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			Leave(dir) // it was killed
		}
		return
	}
	if len(body) > maxMiss {
		return
	}
	message := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: manisd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", resource, len(body), body)
	unix.SendmsgN(fd, []byte(message), nil, nil, unix.MSG_NOSIGNAL)
}

// parseMiss reads such a message.
func parseMiss(b []byte) (*container.Config, error) {
	var m miss
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	switch m.Accel {
	case "", "auto", "kvm", "tcg":
	default:
		return nil, fmt.Errorf("accel %q is unknown", m.Accel)
	}
	if len(m.CPUSet) > 256 {
		return nil, errors.New("the set of CPUs is too long")
	}
	asked := container.Config{Accel: m.Accel, Resources: container.Resources{
		MemoryBytes: m.MemoryBytes, MilliCPUs: m.MilliCPUs, CPUSet: m.CPUSet,
	}}
	if m.Tap {
		asked.Network.Mode = TapMode
	}
	cfg := sizeOf(&asked)
	return &cfg, nil
}
