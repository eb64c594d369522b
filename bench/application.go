package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"manis/test/debimage"
)

// server is a web server in Python, which takes its time to come up: the port is its argument.
const server = `import http.server, json, ssl, sys, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ready")
    def log_message(self, *args):
        pass
http.server.HTTPServer(("", int(sys.argv[1])), Handler).serve_forever()`

// serverPort is the server's in the container. Runtimes without a network of their own have the host's.
const serverPort = 18473

// answerTime bounds the wait for an answer.
const answerTime = time.Minute

// application measures how long a web server takes from its container's start to its first answer,
// and how long one takes that goes on from a snapshot.
func (b *bench) application(ctx context.Context) error {
	img, err := pythonImage(ctx, b)
	if err != nil {
		return err
	}
	t := task{args: []string{"python3", "-c", server, strconv.Itoa(serverPort)}, port: serverPort}
	var subjects []subject
	for _, s := range b.subjects {
		switch s := s.(type) {
		case *oci:
			if _, err := s.address(ctx, t); err != nil {
				b.skip("application", s.name(), err)
				continue
			}
			python := *s
			python.rootfs = img.rootfs
			subjects = append(subjects, &python)
		case *manis:
			m := s.variant(s.label)
			if _, err := m.load(ctx, img.layout); err != nil {
				return err
			}
			m.image = pythonName
			subjects = append(subjects, m)
			snapshot, err := newRestored(ctx, m, t)
			if err != nil {
				b.skip("application", "manis, snapshot", err)
				continue
			}
			defer snapshot.remove()
			subjects = append(subjects, snapshot)
		}
	}
	return b.inTurn(ctx, "application", subjects, b.rounds, func(ctx context.Context, s subject) error {
		begin := time.Now()
		cmd, done := s.command(ctx, t)
		defer done()
		if err := cmd.Start(); err != nil {
			return err
		}
		defer func() {
			cmd.Cancel()
			cmd.Wait()
		}()
		address, err := s.address(ctx, t)
		if err != nil {
			return err
		}
		if err := awaitAnswer(ctx, address); err != nil {
			return err
		}
		b.add("application", "first answer", s.name(), "ms", false, ms(time.Since(begin)))
		return nil
	})
}

// awaitAnswer asks a web server until it answers.
func awaitAnswer(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	for {
		// A refused connection costs next to nothing; a request that nobody answers would.
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
			var resp *http.Response
			if resp, err = client.Get("http://" + address); err == nil {
				resp.Body.Close()
				return nil
			}
		}
		if e := pause(ctx, 2*time.Millisecond); e != nil {
			return fmt.Errorf("wait for the server's answer: %w", err)
		}
	}
}

const pythonName = "manis-bench-python:latest"

// python is an image with Python, as Manis and as the others take it.
type python struct{ layout, rootfs string }

func pythonImage(ctx context.Context, b *bench) (*python, error) {
	builder, err := debimage.New(b.log)
	if err != nil {
		return nil, err
	}
	recipe, err := debimage.Find("python")
	if err != nil {
		return nil, err
	}
	img, err := builder.Build(ctx, recipe)
	if err != nil {
		return nil, err
	}
	p := &python{layout: filepath.Join(b.w.dir, "python"), rootfs: filepath.Join(b.w.dir, "python-rootfs")}
	if err := debimage.WriteLayout(p.layout, img, pythonName); err != nil {
		return nil, err
	}
	return p, unpack(mutate.Extract(img), p.rootfs)
}

// restored is Manis going on from a snapshot.
type restored struct {
	*manis
	snapshot string
}

// newRestored starts the server once, and saves it when it has answered.
func newRestored(ctx context.Context, m *manis, t task) (*restored, error) {
	name := fresh()
	port := freePort()
	args := []string{"run", "-d", "--name", name, "-p", fmt.Sprintf("127.0.0.1:%d:%d", port, t.port), m.image}
	if _, err := m.manis(ctx, append(args, t.args...)...); err != nil {
		return nil, err
	}
	defer m.manis(context.WithoutCancel(ctx), "rm", "-f", name)
	if err := awaitAnswer(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
		return nil, err
	}
	if _, err := m.manis(ctx, "checkpoint", "--name", name, name); err != nil {
		return nil, err
	}
	return &restored{m.variant("manis, snapshot"), name}, nil
}

func (r *restored) command(ctx context.Context, t task) (*exec.Cmd, func()) {
	r.last, r.port = fresh(), freePort()
	name := r.last
	cmd := exec.CommandContext(ctx, r.binary, "run", "--rm", "--name", name,
		"-p", fmt.Sprintf("127.0.0.1:%d:%d", r.port, t.port), "--from-snapshot", r.snapshot)
	cmd.Env = r.env
	return interrupted(cmd), func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		r.manis.manis(ctx, "rm", "-f", "-v", name)
	}
}

func (r *restored) remove() {
	if _, err := r.manis.manis(context.Background(), "snapshot", "rm", r.snapshot); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}
