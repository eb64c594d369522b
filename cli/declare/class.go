package declare

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"manis/container"
	"manis/storage"
	"manis/trust"
)

// confidentialHost is the name of a confidential container that is given none: the manifest has to know it.
const confidentialHost = "confidential"

// setClass comes last: it refuses what the others have declared and the class has nothing of.
func (f *Flags) setClass(c *container.Config, img *Image, _ []string, h Host) error {
	switch f.class {
	case "", "standard":
		if f.manifest != "" || f.owner != "" || f.broker != "" || f.bundle != "" {
			return errors.New("--manifest, --owner-key, --broker and --audit-bundle are for --class confidential")
		}
		return nil
	case container.Confidential:
	default:
		return fmt.Errorf("invalid class %q: there are standard and confidential", f.class)
	}
	c.Class = container.Confidential
	if err := f.setLayer(c); err != nil {
		return err
	}
	if f.hostname == "" {
		c.Hostname = confidentialHost
	}
	refused := func(what, why string) error {
		return fmt.Errorf("%s: a container of the class confidential %s", what, why)
	}
	switch {
	case c.TTY:
		return refused("--tty", "has no terminal")
	case c.OpenStdin:
		return refused("--interactive", "takes no input from its host")
	case c.Security.Privileged:
		return refused("--privileged", "is never that")
	case len(c.Resources.DeviceList) > 0:
		return refused("--device", "has no devices")
	case c.Health != nil && len(c.Health.Test) > 0 && c.Health.Test[0] != "NONE":
		return refused("--health-cmd", "lets nobody execute anything in it, not its health check either (--no-healthcheck)")
	case c.Boot == "template":
		return refused("--boot template", "boots, always")
	}
	c.Boot = "cold"
	for _, m := range c.Mounts {
		if m.Type != "tmpfs" {
			return refused("the mount at "+m.Destination, "has nothing of its host's: neither directories nor volumes (--tmpfs "+m.Destination+" instead)")
		}
	}
	if f.Drafting {
		return nil
	}
	if f.manifest == "" || f.owner == "" {
		return errors.New("--class confidential needs --manifest and --owner-key (see docs/confidential.md)")
	}
	envelope, err := os.ReadFile(f.manifest)
	if err != nil {
		return fmt.Errorf("read the manifest: %w", err)
	}
	if _, err := trust.Peek(envelope); err != nil {
		return fmt.Errorf("%s: %w", f.manifest, err)
	}
	owner, err := ReadPublicKey(f.owner)
	if err != nil {
		return err
	}
	c.Trust = &container.Trust{Manifest: envelope, Owner: owner, Broker: f.broker}
	if f.bundle != "" {
		if c.Trust.Bundle, err = bundlePath(f.bundle); err != nil {
			return err
		}
	}
	return nil
}

// setLayer says where the writable layer is: in memory, unless it is asked for on a disk, which the guest encrypts and whose size the
// manifest has to know.
func (f *Flags) setLayer(c *container.Config) error {
	c.Scratch.Memory = true
	for _, s := range f.storageOpt {
		if key, value, _ := strings.Cut(s, "="); key == "type" {
			c.Scratch.Memory = value != "disk"
		}
	}
	if c.Scratch.Memory || c.ReadOnly {
		return nil
	}
	if c.Scratch.Bytes == 0 {
		c.Scratch.Bytes = storage.DefaultScratchSize
	}
	c.Scratch.Bytes = (c.Scratch.Bytes + 1<<20 - 1) &^ (1<<20 - 1)
	if c.Scratch.Bytes > maxEncrypted {
		return fmt.Errorf("--storage-opt size: an encrypted disk has at most %d GiB", maxEncrypted>>30)
	}
	return nil
}

// maxEncrypted is the largest disk that a guest encrypts, bytes.
const maxEncrypted = 1 << 40

// bundlePath finds where an audit bundle is to go, before anything runs whose bundle would be lost.
func bundlePath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("--audit-bundle: %s is no file", path)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return "", fmt.Errorf("--audit-bundle: %s is no directory", filepath.Dir(path))
	}
	return path, nil
}

// Confidential reports whether the container is to be of the class confidential.
func (f *Flags) Confidential() bool { return f.class == container.Confidential }

// ReadPublicKey reads an ed25519 public key from a PEM file and returns it as PKIX DER.
func ReadPublicKey(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("read the public key: %s is no PEM file with a PUBLIC KEY", path)
	}
	if _, err := trust.ParseKey(block.Bytes); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return block.Bytes, nil
}
