package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// watch prints what inotify tells of paths, as "PATH EVENT NAME" a line, until it is killed; "ready" comes first.
func watch(paths []string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	watched := make(map[int32]string)
	for _, p := range paths {
		wd, err := unix.InotifyAddWatch(fd, p, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_DELETE_SELF|unix.IN_ATTRIB)
		if err != nil {
			return fmt.Errorf("watch %s: %w", p, err)
		}
		watched[int32(wd)] = p
	}
	fmt.Println("ready")
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, b)
		if err != nil {
			return err
		}
		for e := b[:n]; len(e) > 0; {
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(e[12:]))
			mask := binary.NativeEndian.Uint32(e[4:])
			for bit, name := range map[uint32]string{
				unix.IN_CREATE: "created", unix.IN_MOVED_TO: "moved-to", unix.IN_DELETE: "deleted", unix.IN_DELETE_SELF: "deleted-self", unix.IN_ATTRIB: "attributes",
			} {
				if mask&bit != 0 {
					fmt.Fprintln(os.Stdout, watched[int32(binary.NativeEndian.Uint32(e))], name, strings.TrimRight(string(e[unix.SizeofInotifyEvent:end]), "\x00"))
				}
			}
			e = e[end:]
		}
	}
}
