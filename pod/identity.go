package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Identity says whose a pod is, for the operator of the host.
type Identity struct {
	// Engine is who has made it: containerd, docker, podman, cri-o, or oci for another caller of the OCI runtime.
	Engine string
	// Namespace is containerd's; empty: the engine has none.
	Namespace string `json:",omitempty"`
	// ID is the pod's in its engine: that of its sandbox, or of its first container.
	ID string
	// Name is NAMESPACE/POD of Kubernetes; empty: it has none.
	Name string `json:",omitempty"`
	// PID is the process that has the pod.
	PID int
}

// Whose says it for a pod of containerd's shim, by its id there and the annotations of its sandbox, or of its only container.
func Whose(namespace, id string, annotations map[string]string) Identity {
	return Identity{Engine: "containerd", Namespace: namespace, ID: id, Name: podName(annotations), PID: os.Getpid()}
}

// tasks is the directory of containerd in whose subdirectories, by namespaces, bundles are.
const tasks = "/io.containerd.runtime.v2.task/"

// dockersNamespace is Docker's in containerd.
const dockersNamespace = "moby"

// whoseBundle says it for a pod whose first container is made by the OCI runtime's verbs. They do not tell who calls.
func whoseBundle(id, dir string, s *specs.Spec) Identity {
	i := Identity{Engine: "oci", ID: id, Name: podName(s.Annotations), PID: os.Getpid()}
	_, below, ofTask := strings.Cut(filepath.Clean(dir), tasks)
	namespace, _, _ := strings.Cut(below, "/")
	switch {
	case ofTask && namespace == dockersNamespace:
		i.Engine = "docker"
	case ofTask:
		i.Engine, i.Namespace = "containerd", namespace
	case s.Annotations["io.container.manager"] == "libpod":
		i.Engine = "podman"
	case s.Annotations["io.kubernetes.cri-o.SandboxID"] != "":
		i.Engine, i.ID = "cri-o", s.Annotations["io.kubernetes.cri-o.SandboxID"]
	}
	return i
}

// podName is NAMESPACE/POD as Kubernetes' runtimes write it into annotations.
func podName(annotations map[string]string) string {
	pod := firstOf(annotations, "io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
	if pod == "" {
		return ""
	}
	return firstOf(annotations, "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace") + "/" + pod
}

// containerName is NAMESPACE/POD/CONTAINER; that of the container which keeps a pod's namespaces is the pod's.
func containerName(annotations map[string]string) string {
	name := podName(annotations)
	if own := firstOf(annotations, "io.kubernetes.cri.container-name", "io.kubernetes.container.name"); name != "" && own != "" {
		name += "/" + own
	}
	return name
}

func imageName(annotations map[string]string) string {
	return firstOf(annotations, "io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
}

func firstOf(annotations map[string]string, names ...string) string {
	for _, name := range names {
		if value := annotations[name]; value != "" {
			return value
		}
	}
	return ""
}

// identityName is the file in a pod's directory that says whose it is, for when the pod itself does not answer.
const identityName = "identity.json"

// maxIdentity bounds it, bytes.
const maxIdentity = 64 << 10

func (i *Identity) write(dir string) error {
	b, err := json.Marshal(i)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, identityName), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("note whose the pod is: %w", err)
	}
	return nil
}

// readIdentity reads what is noted. Where there is nothing the directory's name stands for the pod.
func readIdentity(dir string) Identity {
	i, err := func() (i Identity, err error) {
		f, err := os.OpenFile(filepath.Join(dir, identityName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return i, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxIdentity))
		if err == nil {
			err = json.Unmarshal(b, &i)
		}
		if err == nil && i.ID == "" {
			err = errors.New("it has no id")
		}
		return i, err
	}()
	if err != nil {
		return Identity{ID: filepath.Base(dir)}
	}
	return i
}
