package monitor_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"manis/api/monitor"
	"manis/container"
	"manis/image"
	monitorpkg "manis/monitor"
	"manis/place"
	"manis/test/debimage"
)

// The test binary is its own monitor.
func TestMain(m *testing.M) {
	if len(os.Args) >= 3 && os.Args[1] == "monitor" {
		os.Exit(monitorpkg.Main(context.Background(), os.Args[2:]))
	}
	os.Exit(m.Run())
}

// installation is a root of its own with busybox in its image store.
type installation struct {
	t      *testing.T
	places *place.Places
	store  *container.Store
	img    *image.Image
}

func install(t *testing.T) *installation {
	t.Helper()
	guest, err := filepath.Abs("../guest/image")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(place.GuestVariable, guest)
	if _, err := place.FindGuest(); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/tmp", "manis-monitor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	places, err := place.Find(filepath.Join(dir, "root"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	if err := places.Make(); err != nil {
		t.Fatal(err)
	}
	builder, err := debimage.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := debimage.Find("busybox")
	if err != nil {
		t.Fatal(err)
	}
	built, err := builder.Build(t.Context(), r)
	if errors.Is(err, debimage.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	images, err := image.Open(places.Images())
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(dir, "layout")
	if err := debimage.WriteLayout(layout, built, "busybox:latest"); err != nil {
		t.Fatal(err)
	}
	loaded, err := images.Load(t.Context(), layout, image.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	store, err := container.Open(places.Containers(), places.Run)
	if err != nil {
		t.Fatal(err)
	}
	return &installation{t: t, places: places, store: store, img: loaded[0]}
}

// create declares a container that runs a shell command.
func (i *installation) create(command string, change func(*container.Config)) *container.Container {
	i.t.Helper()
	cfg := &container.Config{
		Name: "c", Created: time.Now(), Image: "busybox", ImageID: i.img.ID,
		Process:     container.Process{Args: []string{"sh", "-c", command}, Env: []string{"PATH=/bin:/usr/bin"}, Dir: "/"},
		StopTimeout: time.Second, Network: container.Network{Mode: "none"},
		ShmBytes: 64 << 20, Hostname: "box", Accel: "tcg",
	}
	if change != nil {
		change(cfg)
	}
	c, err := i.store.Create(cfg)
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { i.gone(c) })
	return c
}

func (i *installation) spawn(c *container.Container) *monitorpkg.Client {
	i.t.Helper()
	client, err := monitorpkg.Spawn(i.t.Context(), c, monitorpkg.SpawnOptions{Environ: i.places.Environ()})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { client.Close() })
	return client
}

// gone kills what still runs of a container and waits for it.
func (i *installation) gone(c *container.Container) {
	if s, err := c.State(); err == nil && s.MonitorPID > 0 {
		syscall.Kill(s.MonitorPID, syscall.SIGKILL)
	}
	for range 500 {
		if !c.Monitored() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	i.t.Errorf("the monitor of %s does not end", c.ID)
}

// run starts a container attached and returns its output and exit.
func (i *installation) run(c *container.Container, stdin string) (stdout, stderr string, exit *monitor.WaitResponse, err error) {
	i.t.Helper()
	client := i.spawn(c)
	ctx, cancel := context.WithTimeout(i.t.Context(), time.Minute)
	defer cancel()
	streams := &monitor.Streams{}
	var out, errs bytes.Buffer
	var reading sync.WaitGroup
	for _, s := range []struct {
		token *uint64
		to    *bytes.Buffer
	}{{&streams.Stdout, &out}, {&streams.Stderr, &errs}} {
		conn, token, err := client.Stream()
		if err != nil {
			i.t.Fatal(err)
		}
		*s.token = token
		reading.Go(func() { io.Copy(s.to, conn); conn.Close() })
	}
	in, token, err := client.Stream()
	if err != nil {
		i.t.Fatal(err)
	}
	streams.Stdin = token
	go func() {
		io.WriteString(in, stdin)
		in.Close()
	}()
	if _, err := client.API().Start(ctx, &monitor.StartRequest{Attach: &monitor.AttachRequest{Streams: streams}}); err != nil {
		return "", "", nil, err
	}
	exit, err = client.API().Wait(ctx, &monitor.WaitRequest{})
	reading.Wait()
	return out.String(), errs.String(), exit, err
}

func TestRunToTheEnd(t *testing.T) {
	i := install(t)
	c := i.create("cat; echo to stderr >&2; exit 3", func(cfg *container.Config) { cfg.OpenStdin, cfg.StdinOnce = true, true })
	out, errs, exit, err := i.run(c, "hello\n")
	if err != nil {
		t.Fatal(err)
	}
	if out != "hello\n" || errs != "to stderr\n" || exit.ExitCode != 3 {
		t.Errorf("stdout %q, stderr %q, exit %v", out, errs, exit)
	}
	i.gone(c)
	s, err := c.State()
	if err != nil || s.Status != container.Exited || s.ExitCode != 3 || s.MonitorPID != 0 {
		t.Errorf("state %+v, %v", s, err)
	}
	log, err := os.ReadFile(filepath.Join(monitorpkg.LogDir(c.Dir()), "container.log"))
	if err != nil || !strings.Contains(string(log), `{"log":"hello\n","stream":"stdout","time":"`) {
		t.Errorf("log %q, %v", log, err)
	}
	if _, err := os.Stat(c.RunDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run directory left: %v", err)
	}
}

func TestFrontEndThatVanishesBeforeTheStart(t *testing.T) {
	i := install(t)
	c := i.create("true", nil)
	i.spawn(c).Close()
	i.gone(c)
	if s, err := c.State(); err != nil || s.Status != container.Created {
		t.Errorf("state %+v, %v", s, err)
	}
}

func TestCommandNotFound(t *testing.T) {
	i := install(t)
	c := i.create("", func(cfg *container.Config) { cfg.Process.Args = []string{"no-such-command"} })
	if _, _, _, err := i.run(c, ""); err == nil || !strings.Contains(err.Error(), "no-such-command") {
		t.Errorf("error %v", err)
	}
	i.gone(c)
	if s, err := c.State(); err != nil || s.ExitCode != 127 || s.Status != container.Created {
		t.Errorf("state %+v, %v", s, err)
	}
}
