package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	monitorapi "manis/api/monitor"
	"manis/cli/archive"
	"manis/cli/terminal"
	"manis/container"
	"manis/monitor"
)

type cpFlags struct{ archive, follow, quiet bool }

func (a *app) cpCommand() *cobra.Command {
	var f cpFlags
	cmd := &cobra.Command{
		Use: `cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-
	manis cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH`,
		Short: "Copy files/folders between a container and the local filesystem",
		Long: `Copy files/folders between a container and the local filesystem. The container
may be running or not: the virtual machine of one that is not is booted for the
copy, without the container's process.

Use '-' as the source to read a tar archive from stdin and extract it to a
directory in a container. Use '-' as the destination to stream a tar archive of a
container source to stdout.`,
		Args: needs(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return asInterrupted(ctx, a.cp(ctx, args[0], args[1], f))
		},
	}
	cmd.Flags().BoolVarP(&f.archive, "archive", "a", false, "Archive mode (copy all uid/gid information)")
	cmd.Flags().BoolVarP(&f.follow, "follow-link", "L", false, "Always follow symbol link in SRC_PATH")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "Suppress the summary of what was copied")
	return cmd
}

// splitCopy tells a container's path from a local one.
func splitCopy(arg string) (name, file string) {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return "", arg
	}
	name, file, ok := strings.Cut(arg, ":")
	if !ok || strings.Contains(name, "/") {
		return "", arg
	}
	return name, file
}

func (a *app) cp(ctx context.Context, src, dst string, f cpFlags) error {
	fromName, fromPath := splitCopy(src)
	toName, toPath := splitCopy(dst)
	switch {
	case fromName != "" && toName != "":
		return errors.New("copying between containers is not supported")
	case fromName == "" && toName == "":
		return errors.New("must specify at least one container source")
	case fromName != "" && fromPath == "", toName != "" && toPath == "":
		return errors.New("the path in the container is empty")
	case fromPath == "" || toPath == "":
		return errors.New("source and destination can not be empty")
	}
	name := fromName + toName
	c := &copying{a: a, flags: f}
	transfer := func() (int64, error) {
		if fromName != "" {
			return c.out(ctx, fromPath, toPath)
		}
		return c.in(ctx, fromPath, toPath)
	}
	n, err := c.with(ctx, name, transfer)
	for tries := 1; errors.Is(err, errNotBegun) && tries < 5; tries++ {
		n, err = c.with(ctx, name, transfer)
	}
	if err != nil {
		return err
	}
	if !f.quiet && dst != "-" && terminal.Is(a.err) {
		fmt.Fprintf(a.err, "Successfully copied %s to %s\n", humanSize(n), dst)
	}
	return nil
}

// copying is one cp.
type copying struct {
	a         *app
	container *container.Container
	client    *monitor.Client
	// lent is set when the container does not run and its machine is there for this copy.
	lent bool
	// hungUp is set when the connection was ended from here: the monitor did not.
	hungUp bool
	flags  cpFlags
}

// errNotBegun ends a copy whose container ended before anything was copied.
var errNotBegun = errors.New("the container ended meanwhile")

// with copies while it has the container's files within reach.
func (c *copying) with(ctx context.Context, name string, transfer func() (int64, error)) (int64, error) {
	if err := c.open(ctx, name); err != nil {
		return 0, err
	}
	defer c.client.Close()
	n, err := transfer()
	switch {
	case err == nil || ctx.Err() != nil:
	case !c.lent && grpcstatus.Code(err) == codes.Aborted:
		err = errNotBegun
	case lost(c.client) && !c.hungUp && !errors.Is(err, errNotBegun):
		err = c.client.Lost()
	}
	if closeErr := c.close(ctx); err == nil {
		err = closeErr
	}
	return n, err
}

// open reaches the container's files: through its monitor when it runs, else through one
// that boots its machine for the copy. Who has the container at the moment, to start it, end
// it or copy as well, is waited for.
func (c *copying) open(ctx context.Context, name string) error {
	var err error
	if c.container, err = c.a.container(name); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, busyTime)
	defer cancel()
	for {
		err := c.reach(ctx)
		if !errors.Is(err, container.ErrRunning) && !errors.Is(err, container.ErrBusy) {
			return err
		}
		if st, err := c.container.State(); err != nil {
			return err
		} else if st.Status == container.Restarting {
			return notRunning(c.container, err)
		}
		if errors.Is(err, container.ErrBusy) {
			waitErr := c.container.AwaitRelease(waiting)
			if waitErr != nil && ctx.Err() == nil {
				return err
			}
			if waitErr != nil {
				return waitErr
			}
			continue
		}
		// Nothing tells when a monitor that begins is ready to be asked.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-waiting.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: %s is being started, stopped or removed", container.ErrBusy, c.container.ID[:12])
		}
	}
}

// bootTime bounds the wait for a machine that is booting.
const bootTime = 3 * time.Minute

// reach tries once. It fails with ErrRunning or ErrBusy when the container is neither
// running nor at rest.
func (c *copying) reach(ctx context.Context) error {
	client, err := monitor.Connect(ctx, c.container)
	lent := errors.Is(err, monitor.ErrNotRunning)
	if lent {
		client, err = c.a.launch(ctx, c.container, true)
	}
	if err != nil {
		return err
	}
	// Answered when the container is there: while it is being started, or its machine
	// booted for this copy, that takes a while.
	ready, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	_, err = client.API().CopyOut(ready, &monitorapi.CopyOutRequest{Path: "/"})
	switch {
	case err == nil:
		c.client, c.lent = client, lent
		return nil
	case lent && lost(client):
		err = client.Lost()
	case !lent && (lost(client) || grpcstatus.Code(err) == codes.Aborted || grpcstatus.Code(err) == codes.Unavailable):
		err = container.ErrRunning // and about to end
	}
	client.Close()
	return err
}

// close lets the machine of a container that does not run go. The error says that what was
// copied may not have reached the container's disk.
func (c *copying) close(ctx context.Context) error {
	defer c.client.Close()
	if !c.lent || ctx.Err() != nil || lost(c.client) {
		return nil // the machine ends with this connection
	}
	_, err := c.client.API().Stop(ctx, &monitorapi.StopRequest{})
	if err != nil && lost(c.client) {
		err = c.client.Lost()
	}
	return err
}

// stat says what a path of the container is; nil if it is nothing.
func (c *copying) stat(ctx context.Context, name string, follow bool) (*monitorapi.CopyOutResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	st, err := c.client.API().CopyOut(ctx, &monitorapi.CopyOutRequest{Path: name, FollowLink: follow})
	switch {
	case grpcstatus.Code(err) == codes.NotFound:
		return nil, nil
	case err != nil && !c.lent && (lost(c.client) || grpcstatus.Code(err) == codes.Unavailable || grpcstatus.Code(err) == codes.Aborted):
		return nil, errNotBegun
	}
	return st, err
}

// contentOnly reports whether a path means what is in the directory, not the
// directory: "dir/.".
func contentOnly(name string) bool {
	return name == "." || name == ".." || strings.HasSuffix(name, "/.") || strings.HasSuffix(name, "/..")
}

// out copies from the container.
func (c *copying) out(ctx context.Context, src, dst string) (int64, error) {
	st, err := c.stat(ctx, src, c.flags.follow)
	if err != nil {
		return 0, err
	}
	if st == nil {
		return 0, fmt.Errorf("could not find the file %s in the container", src)
	}
	if strings.HasSuffix(src, "/") && !st.IsDir {
		return 0, fmt.Errorf("%s in the container is not a directory", src)
	}
	if dst == "-" {
		if terminal.Is(c.a.out) {
			return 0, errors.New("cowardly refusing to write an archive to a terminal: redirect the output")
		}
		return c.fetch(ctx, src, func(r io.Reader) (int64, error) { return io.Copy(c.a.out, r) })
	}
	// Not what the guest says it is called: that would choose the file on the host.
	name := ownName(src)
	dir, base, err := target(st.IsDir, contentOnly(src), name, dst)
	if err != nil {
		return 0, err
	}
	return c.fetch(ctx, src, func(r io.Reader) (int64, error) {
		return archive.Unpack(r, dir, name, base, archive.Options{
			KeepOwnership: c.flags.archive,
			Skipped:       func(name, why string) { c.a.note("left out %s: %s", name, why) },
		})
	})
}

// ownName is the last name of a path of the container, "." for its root.
func ownName(src string) string {
	if name := path.Base(path.Clean("/" + src)); name != "/" {
		return name
	}
	return "."
}

// target decides where on the host a copy goes: the directory to write to, and the
// name in it, "." for the content of a directory.
func target(srcDir, content bool, name, dst string) (dir, base string, err error) {
	fi, err := os.Stat(dst)
	switch {
	case err == nil && fi.IsDir() && srcDir && content:
		return dst, ".", nil
	case err == nil && fi.IsDir():
		if name == "." { // the root directory of the container
			return dst, ".", nil
		}
		return dst, name, nil
	case err == nil && srcDir:
		return "", "", fmt.Errorf("cannot copy a directory to the file %s", dst)
	case err == nil && strings.HasSuffix(dst, "/"):
		return "", "", fmt.Errorf("%s is not a directory", dst)
	case err == nil:
		return filepath.Dir(dst), filepath.Base(dst), nil
	case !errors.Is(err, os.ErrNotExist):
		return "", "", err
	case strings.HasSuffix(dst, "/") && !srcDir:
		return "", "", fmt.Errorf("destination directory %s does not exist", dst)
	}
	dst = filepath.Clean(dst)
	if _, err := os.Stat(filepath.Dir(dst)); err != nil {
		return "", "", fmt.Errorf("invalid output path: directory %s does not exist", filepath.Dir(dst))
	}
	return filepath.Dir(dst), filepath.Base(dst), nil
}

// fetch gives the archive of a path of the container to use.
func (c *copying) fetch(ctx context.Context, src string, use func(io.Reader) (int64, error)) (int64, error) {
	stream, token, err := c.client.Stream()
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	answered := make(chan error, 1)
	go func() {
		_, err := c.client.API().CopyOut(ctx, &monitorapi.CopyOutRequest{Path: src, Stream: token, FollowLink: c.flags.follow})
		if err != nil {
			// Nothing more will come.
			stream.SetDeadline(time.Unix(1, 0))
		}
		answered <- err
	}()
	from := &watched{Conn: stream}
	n, err := use(from)
	if err != nil {
		stream.SetDeadline(time.Unix(1, 0))
		stream.Close()
		if from.err != nil {
			// It may have ended in the middle: why is in the answer, which comes after it.
			if remote := <-answered; remote != nil {
				err = remote
			}
		} else {
			c.hungUp = true
			c.client.Close() // ends the request
			<-answered
		}
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		return n, err
	}
	return n, <-answered
}

// in copies to the container.
func (c *copying) in(ctx context.Context, src, dst string) (int64, error) {
	if src == "-" {
		st, err := c.stat(ctx, dst, true)
		if err != nil {
			return 0, err
		}
		if st == nil || !st.IsDir {
			return 0, fmt.Errorf("destination \"%s\" must be a directory of the container", dst)
		}
		n, err := c.send(ctx, dst, func(w io.Writer) (int64, error) { return io.Copy(w, c.a.in) })
		if grpcstatus.Code(err) == codes.Aborted {
			err = errors.New(text(err)) // what was read is gone: there is no second try
		}
		return n, err
	}
	follow := c.flags.follow || strings.HasSuffix(src, "/") || contentOnly(src)
	stat := os.Lstat
	if follow {
		stat = os.Stat
	}
	fi, err := stat(src)
	if err != nil {
		return 0, err
	}
	if strings.HasSuffix(src, "/") && !fi.IsDir() {
		return 0, fmt.Errorf("%s is not a directory", src)
	}
	abs, err := filepath.Abs(src)
	if err != nil {
		return 0, err
	}
	dir, base, err := c.placeIn(ctx, fi.IsDir(), contentOnly(src), filepath.Base(abs), dst)
	if err != nil {
		return 0, err
	}
	return c.send(ctx, dir, func(w io.Writer) (int64, error) { return archive.Pack(w, src, base, follow) })
}

// placeIn decides where in the container a copy goes.
func (c *copying) placeIn(ctx context.Context, srcDir, content bool, name, dst string) (dir, base string, err error) {
	// A link is replaced by nothing: what it leads to is written.
	for range 40 {
		link, err := c.stat(ctx, strings.TrimRight(dst, "/"), false)
		if err != nil {
			return "", "", err
		}
		if link == nil || link.Mode&unix.S_IFMT != unix.S_IFLNK {
			break
		}
		target := link.LinkTarget
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(path.Clean("/"+dst)), target)
		}
		dst = target
	}
	st, err := c.stat(ctx, dst, true)
	if err != nil {
		return "", "", err
	}
	clean := path.Clean("/" + dst)
	switch {
	case st != nil && st.IsDir && srcDir && content:
		return clean, ".", nil
	case st != nil && st.IsDir:
		return clean, name, nil
	case st != nil && srcDir:
		return "", "", fmt.Errorf("cannot copy a directory to the file %s of the container", dst)
	case st != nil && strings.HasSuffix(dst, "/"):
		return "", "", fmt.Errorf("%s of the container is not a directory", dst)
	case st == nil && strings.HasSuffix(dst, "/") && !srcDir:
		return "", "", fmt.Errorf("destination directory %s does not exist in the container", dst)
	}
	if st == nil {
		parent, err := c.stat(ctx, path.Dir(clean), true)
		if err != nil {
			return "", "", err
		}
		if parent == nil || !parent.IsDir {
			return "", "", fmt.Errorf("could not find the directory %s in the container", path.Dir(clean))
		}
	}
	return path.Dir(clean), path.Base(clean), nil
}

// send unpacks what write writes in a directory of the container.
func (c *copying) send(ctx context.Context, dir string, write func(io.Writer) (int64, error)) (int64, error) {
	stream, token, err := c.client.Stream()
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	type written struct {
		n   int64
		err error
	}
	done := make(chan written, 1)
	to := &watched{Conn: stream}
	go func() {
		n, err := write(onlyWrite{to})
		if err != nil {
			// An archive without its end is an error on the other side too.
			c.a.abort(stream)
		} else {
			err = stream.Close()
		}
		done <- written{n, err}
	}()
	_, err = c.client.API().CopyIn(ctx, &monitorapi.CopyInRequest{Path: dir, Stream: token, KeepOwnership: c.flags.archive})
	if err != nil {
		c.a.abort(stream)
	}
	w := <-done
	switch {
	case ctx.Err() != nil:
		return w.n, context.Cause(ctx)
	case w.err != nil && (err == nil || to.err == nil):
		return w.n, w.err
	}
	// A stream that broke, or was ended above, says less than the answer.
	return w.n, err
}

// abort ends a stream in both directions.
func (a *app) abort(stream net.Conn) {
	stream.SetDeadline(time.Unix(1, 0))
	stream.Close()
}

// watched remembers the first error of a stream, or its end, which tells them from those of
// what is at its other end on the host. It is for one reader or writer.
type watched struct {
	net.Conn
	err error
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

// onlyWrite hides everything else that a connection can do.
type onlyWrite struct{ io.Writer }
