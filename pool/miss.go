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
}

// maxMiss bounds the message.
const maxMiss = 4096

// Miss tells the pool with this directory, if somebody keeps one, that a container found no machine in
// it. It waits for nobody and cannot fail: a pool that is too busy to hear of it goes without.
func Miss(dir string, cfg *container.Config) {
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
	c := sizeOf(cfg)
	body, err := json.Marshal(miss{c.Accel, c.Resources.MemoryBytes, c.Resources.MilliCPUs, c.Resources.CPUSet})
	if err != nil || len(body) > maxMiss {
		return
	}
	message := fmt.Sprintf("POST /missed HTTP/1.1\r\nHost: manisd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
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
	cfg := sizeOf(&container.Config{Accel: m.Accel, Resources: container.Resources{
		MemoryBytes: m.MemoryBytes, MilliCPUs: m.MilliCPUs, CPUSet: m.CPUSet,
	}})
	return &cfg, nil
}
