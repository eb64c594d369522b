package netns

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Spare makes a tap device that leads nowhere, in a network namespace of its own that ends with
// the descriptor: for machines that are made before anybody knows for which namespace.
func Spare() (*os.File, error) {
	type result struct {
		tap *os.File
		err error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		tap, err := func() (*os.File, error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return nil, err
			}
			defer h.Close()
			tap, _, err := makeTap(h, 1500)
			return tap, err
		}()
		made <- result{tap, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, fmt.Errorf("make a spare tap device: %w", r.err)
	}
	return r.tap, nil
}
