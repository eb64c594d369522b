package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// answerTime is how long containerd may take for an answer.
	answerTime = 10 * time.Second
	// restartTime is how long the command may take.
	restartTime = 2 * time.Minute
)

// backTime is how long containerd may take to answer again after it was restarted; tests have less.
var backTime = 90 * time.Second

// engine is what containerd says of itself.
type engine struct {
	version string
	// handles is true if it knows our handler.
	handles bool
}

// modern is true for containerd 2.x.
func (e engine) modern() bool {
	return !strings.HasPrefix(strings.TrimPrefix(e.version, "v"), "1.")
}

// ask asks containerd by CRI.
func (h *Host) ask(ctx context.Context) (engine, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+h.inside(h.Socket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return engine{}, fmt.Errorf("ask containerd at %s: %w", h.Socket, err)
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	version, err := client.Version(ctx, new(cri.VersionRequest))
	if err != nil {
		return engine{}, fmt.Errorf("ask containerd at %s: %w", h.Socket, err)
	}
	e := engine{version: version.RuntimeVersion}
	if version.RuntimeName != "containerd" {
		return e, fmt.Errorf("%s is %.40q and not containerd, the only one of Kubernetes' runtimes that Manis works under", h.Socket, version.RuntimeName)
	}
	status, err := client.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return e, fmt.Errorf("ask containerd at %s: %w", h.Socket, err)
	}
	for _, handler := range status.RuntimeHandlers {
		e.handles = e.handles || handler.Name == h.Handler
	}
	if len(status.RuntimeHandlers) == 0 { // 1.x
		var config struct {
			Containerd struct {
				Runtimes map[string]json.RawMessage `json:"runtimes"`
			} `json:"containerd"`
		}
		if err := json.Unmarshal([]byte(status.Info["config"]), &config); err != nil {
			return e, fmt.Errorf("read containerd's configuration: %w", err)
		}
		_, e.handles = config.Containerd.Runtimes[h.Handler]
	}
	return e, nil
}

// restart restarts containerd, and waits until it answers and knows the handler, or, with want false, does not.
func (h *Host) restart(ctx context.Context, want bool) error {
	if len(h.Restart) == 0 {
		return errors.New("containerd has to be restarted, and there is no --restart that says how")
	}
	h.Log("restarting containerd: %s", strings.Join(h.Restart, " "))
	limited, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	cmd := exec.CommandContext(limited, "/usr/bin/env", h.Restart...) // PATH is the node's
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_IGNORE_CHROOT=1"}
	if h.Root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.Root}
	}
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("restart containerd: %s: %w: %.500s", strings.Join(h.Restart, " "), err, out)
	}
	for end := time.Now().Add(backTime); ; {
		e, err := h.ask(ctx)
		if err == nil && e.handles == want {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			if err != nil {
				return &silent{fmt.Errorf("containerd does not answer after its restart: %w", err)}
			}
			return fmt.Errorf("containerd does not follow %s, which its configuration seems not to import: does it read %s?", h.DropIn, h.Config)
		}
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// silent is the error of a containerd that does not come back.
type silent struct{ error }

func (s *silent) Unwrap() error { return s.error }
