package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"manis/cli/crilog"
	"manis/cli/journal"
)

// logsOfEngine is logs of a container of an engine's: the engine has them. The kubelet's are files.
func (a *app) logsOfEngine(ctx context.Context, e *engineContainer, q journal.Query, f logsFlags) error {
	if err := e.inside(); err != nil {
		return err
	}
	path, err := crilog.Find(crilog.KubeletDir, e.c.ID)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the output of container %s is kept by its engine: %s", e.c.ID, engineLogs(e))
	case err != nil:
		return err
	case f.follow:
		return fmt.Errorf("--follow: the output of container %s is kept by the kubelet: %s", e.c.ID, engineLogs(e)+" --follow")
	}
	out, errOut := bufio.NewWriter(a.out), bufio.NewWriter(a.err)
	err = crilog.Read(ctx, path, q, func(r *journal.Record) error {
		if r.Stream == "stderr" && !e.c.Terminal {
			return writeRecord(errOut, r, f)
		}
		return writeRecord(out, r, f)
	})
	return errors.Join(err, out.Flush(), errOut.Flush())
}

// engineLogs is the command that shows a container's output.
func engineLogs(e *engineContainer) string {
	if parts := strings.Split(e.c.Name, "/"); len(parts) == 3 {
		return fmt.Sprintf("kubectl logs --namespace %s %s --container %s", parts[0], parts[1], parts[2])
	}
	switch e.pod.Description.Engine {
	case "docker", "podman":
		return e.pod.Description.Engine + " logs " + e.c.ID
	}
	return "ask who has started it"
}
