package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"manis/container"
)

// cidFile is the file of --cidfile; "" is none.
type cidFile string

// free says early that the file is there already.
func (f cidFile) free() error {
	if f == "" {
		return nil
	}
	if _, err := os.Stat(string(f)); err == nil {
		return fmt.Errorf("container ID file found, make sure the other container isn't running or delete %s", f)
	}
	return nil
}

// write writes the ID of a container that was just made, to a file that must not be there yet.
func (f cidFile) write(c *container.Container) error {
	if f == "" {
		return nil
	}
	if err := writeNew(string(f), c.ID); err != nil {
		return fmt.Errorf("write the container ID file: %w", err)
	}
	return nil
}

// writeNew writes a file that must not be there yet.
func writeNew(name, content string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s was made by somebody else meanwhile: %w", name, err)
		}
		return err
	}
	_, err = f.WriteString(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
