// Command mkinitramfs writes the initramfs of a guest from an agent binary:
//
//	mkinitramfs -o guest/image/initramfs.cpio bin/manis-agent
//
// An output that already has the right content is left alone, so that its time stays.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"manis/guest/initramfs"
)

func main() {
	output := flag.String("o", "", "`file` to write")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: mkinitramfs -o FILE AGENT")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *output == "" || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := build(*output, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "mkinitramfs:", err)
		os.Exit(1)
	}
}

func build(output, agentPath string) error {
	agent, err := os.ReadFile(agentPath)
	if err != nil {
		return fmt.Errorf("read agent: %w", err)
	}
	var archive bytes.Buffer
	if err := initramfs.Write(&archive, agent); err != nil {
		return fmt.Errorf("%s: %w", agentPath, err)
	}
	if old, err := os.ReadFile(output); err == nil && bytes.Equal(old, archive.Bytes()) {
		return nil
	}
	return replace(output, archive.Bytes())
}

// replace puts content at path in one step: a VM that starts meanwhile sees the old file or
// the new one, never half of it.
func replace(path string, content []byte) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), ".initramfs-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.Write(content)
	if chmodErr := temporary.Chmod(0o644); err == nil {
		err = chmodErr
	}
	if closeErr := temporary.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(temporary.Name(), path)
}
