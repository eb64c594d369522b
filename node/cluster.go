package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// What a node says of itself. A RuntimeClass selects nodes by ReadyLabel.
const (
	ReadyLabel   = "manis.io/ready"
	VersionLabel = "manis.io/version"
	// ProblemAnnotation says why a node is not ready, and what to do.
	ProblemAnnotation = "manis.io/problem"
)

// accountDir is where Kubernetes shows a container its service account.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// maxAnswer bounds what is read of an answer, bytes. Nodes with many images are large.
const maxAnswer = 4 << 20

// Cluster is the API server, asked as the service account of the pod that this process is in.
type Cluster struct {
	base   string
	dir    string
	client *http.Client
}

// errNotThere: the API server knows no such object.
var errNotThere = errors.New("not found")

// FindCluster finds the API server by what a pod is told.
func FindCluster() (*Cluster, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("this is no pod of Kubernetes: KUBERNETES_SERVICE_HOST is not set")
	}
	return newCluster("https://"+net.JoinHostPort(host, port), accountDir)
}

func newCluster(base, dir string) (*Cluster, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("read the cluster's certificate: nothing of use in %s", filepath.Join(dir, "ca.crt"))
	}
	return &Cluster{base: base, dir: dir, client: &http.Client{
		Timeout: 15 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, IdleConnTimeout: 30 * time.Second},
	}}, nil
}

// do makes a request, and reads the answer into out, if that is not nil.
func (c *Cluster) do(ctx context.Context, method, path, kind string, body, out any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "token")) // it is replaced from time to time
	if err != nil {
		return fmt.Errorf("read the service account's token: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	r.Header.Set("Content-Type", kind)
	r.Header.Set("Accept", "application/json")
	response, err := c.client.Do(r)
	if err != nil {
		return fmt.Errorf("ask the API server: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err != nil:
		return fmt.Errorf("ask the API server: %s %s: %w", method, path, err)
	case response.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s %s: %w", method, path, errNotThere)
	case response.StatusCode/100 != 2:
		return fmt.Errorf("%s %s: the API server says %s: %.300s", method, path, response.Status, answer)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	return nil
}

// Mark writes on a node whether it is ready for pods, with which version, and what is wrong with it. Without a version all marks are
// taken away.
func (c *Cluster) Mark(ctx context.Context, node, version string, problems []string) error {
	labels := map[string]any{ReadyLabel: nil, VersionLabel: nil}
	annotations := map[string]any{ProblemAnnotation: nil}
	if version != "" {
		labels[ReadyLabel], labels[VersionLabel] = "true", version
		if len(problems) > 0 {
			labels[ReadyLabel] = "false"
			annotations[ProblemAnnotation] = strings.Join(problems, "; ")
		}
	}
	patch := map[string]any{"metadata": map[string]any{"labels": labels, "annotations": annotations}}
	err := c.do(ctx, http.MethodPatch, "/api/v1/nodes/"+url.PathEscape(node), "application/merge-patch+json", patch, nil)
	if err != nil {
		return fmt.Errorf("label the node: %w", err)
	}
	return nil
}

var objectName = regexp.MustCompile(`^[a-z0-9][-a-z0-9.]{0,252}$`)

// Fleet is the DaemonSet that installs Manis.
type Fleet struct{ Namespace, Name string }

// ParseFleet reads NAMESPACE/NAME.
func ParseFleet(s string) (Fleet, error) {
	namespace, name, _ := strings.Cut(s, "/")
	if !objectName.MatchString(namespace) || !objectName.MatchString(name) {
		return Fleet{}, fmt.Errorf("--daemonset %q: give NAMESPACE/NAME", s)
	}
	return Fleet{namespace, name}, nil
}

func (f Fleet) path() string {
	return "/apis/apps/v1/namespaces/" + f.Namespace + "/daemonsets/" + f.Name
}

// Leaving reports whether the DaemonSet is being deleted, or is gone: its pods are then to take away what they have installed, and
// not when they only give way to newer ones.
func (c *Cluster) Leaving(ctx context.Context, f Fleet) (bool, error) {
	var set struct {
		Metadata struct {
			DeletionTimestamp *string `json:"deletionTimestamp"`
		} `json:"metadata"`
	}
	err := c.do(ctx, http.MethodGet, f.path(), "application/json", nil, &set)
	if errors.Is(err, errNotThere) {
		return true, nil
	}
	return set.Metadata.DeletionTimestamp != nil, err
}

// Retire deletes the DaemonSet, and returns when all of its pods have ended: they still have their service account meanwhile, which
// a deletion of everything at once would take from them.
func (c *Cluster) Retire(ctx context.Context, f Fleet) error {
	foreground := map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
	for err := c.do(ctx, http.MethodDelete, f.path(), "application/json", foreground, nil); ; {
		if errors.Is(err, errNotThere) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("delete the DaemonSet: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the DaemonSet's pods have not all ended: %w (their logs say what they wait for)", ctx.Err())
		case <-time.After(time.Second):
		}
		var there bool
		if there, err = c.Leaving(ctx, f); err == nil && there {
			err = c.do(ctx, http.MethodGet, f.path(), "application/json", nil, nil)
		}
	}
}
