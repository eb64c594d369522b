package main

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// keep fills a file with blocks of "MARKER one", and with "MARKER two" in the same place when it gets SIGUSR1, and reads it back from the disk again
// and again, past the page cache. It prints what the file is, whenever that is not what it was before: one, two, other, or the
// error of reading.
func keep(args []string) error {
	const blocks, blockSize = 512, 4096
	path, marker := args[0], args[1]
	content := func(word string) []byte {
		line := marker + " " + word + "\n"
		block := strings.Repeat(line, blockSize/len(line)+1)[:blockSize]
		return []byte(strings.Repeat(block, blocks))
	}
	write := func(word string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(content(word)); err != nil {
			return err
		}
		return f.Sync()
	}
	more := make(chan os.Signal, 1)
	signal.Notify(more, unix.SIGUSR1)
	if err := write("one"); err != nil {
		return err
	}
	buffer, err := unix.Mmap(-1, 0, blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	last := ""
	for {
		is := "other"
		if err := readPast(path, buffer); err != nil {
			is = err.Error()
		} else if bytes.Equal(buffer, content("one")) {
			is = "one"
		} else if bytes.Equal(buffer, content("two")) {
			is = "two"
		}
		if is != last {
			fmt.Println(is)
			last = is
		}
		select {
		case <-more:
			if err := write("two"); err != nil {
				return err
			}
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// readPast reads a whole file from its disk.
func readPast(path string, buffer []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd)
	for at := 0; at < len(buffer); {
		n, err := unix.Pread(fd, buffer[at:], int64(at))
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("read: it has %d bytes", at)
		}
		at += n
	}
	return nil
}
