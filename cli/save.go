package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"manis/cli/terminal"
	"manis/image/archive"
)

func (a *app) saveCommand() *cobra.Command {
	var output, format string
	cmd := &cobra.Command{
		Use:               "save [OPTIONS] IMAGE [IMAGE...]",
		Short:             "Save one or more images to a tar archive (streamed to STDOUT by default)",
		Args:              needs(1, -1),
		ValidArgsFunction: a.imageNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return asInterrupted(ctx, a.save(ctx, args, output, archive.Format(format)))
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	cmd.Flags().StringVar(&format, "format", string(archive.Docker), `Format of the archive ("docker", "oci")`)
	return cmd
}

func (a *app) save(ctx context.Context, refs []string, output string, format archive.Format) error {
	images, err := a.images()
	if err != nil {
		return err
	}
	if output == "" || output == "-" {
		if terminal.Is(a.out) {
			return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
		}
		return images.Save(ctx, refs, a.out, format)
	}
	return writeWhole(output, func(w io.Writer) error {
		return images.Save(ctx, refs, w, format)
	})
}

// writeWhole writes a file that is there as a whole or not at all, unless it is a
// device or a pipe.
func writeWhole(name string, write func(io.Writer) error) error {
	if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() {
		if fi.IsDir() {
			return fmt.Errorf("invalid output path: %q is a directory", name)
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = write(f)
		return errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return fmt.Errorf("invalid output path: %w", err)
	}
	defer os.Remove(f.Name())
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
