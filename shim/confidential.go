package shim

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"manis/api/agent"
	"manis/bundle"
	declared "manis/container"
	"manis/container/workload"
	"manis/image"
	"manis/monitor"
	"manis/place"
	"manis/pod"
	"manis/trust"
)

// Annotations of a pod of the class confidential: what its machine is handed.
const (
	manifestAnnotation = "manis.manifest"  // the owner's signed manifest, a DSSE envelope
	ownerAnnotation    = "manis.owner-key" // the owner's public key, PEM
	brokerAnnotation   = "manis.broker"    // where the manifest's broker is, if not where the manifest says
)

// classLine is the option of a handler whose pods are all confidential (deploy/containerd).
var classLine = regexp.MustCompile(`(?m)^\s*class\s*=\s*["']confidential["']\s*$`)

// wantsConfidential reads a handler's options.
func wantsConfidential(options *anypb.Any) bool {
	if !strings.HasSuffix(options.GetTypeUrl(), "runtimeoptions.v1.Options") {
		return false
	}
	o := new(runtimeoptions.Options)
	return proto.Unmarshal(options.Value, o) == nil && classLine.Match(o.ConfigBody)
}

// errNoManifest: a pod's handler is for confidential ones.
var errNoManifest = fmt.Errorf("the handler is for pods of the class confidential: annotation %s is missing (see docs/confidential.md): %w", manifestAnnotation, errdefs.ErrInvalidArgument)

// trustOf is what the machine of a pod with these annotations is handed; nil: the pod is of another class.
func trustOf(annotations map[string]string) (*declared.Trust, error) {
	envelope, ok := annotations[manifestAnnotation]
	if !ok {
		for _, name := range []string{ownerAnnotation, brokerAnnotation} {
			if annotations[name] != "" {
				return nil, fmt.Errorf("annotation %s goes with %s, which is missing: %w", name, manifestAnnotation, errdefs.ErrInvalidArgument)
			}
		}
		return nil, nil
	}
	if _, err := trust.Peek([]byte(envelope)); err != nil {
		return nil, fmt.Errorf("annotation %s: %w: %w", manifestAnnotation, err, errdefs.ErrInvalidArgument)
	}
	block, _ := pem.Decode([]byte(annotations[ownerAnnotation]))
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("annotation %s: it is no PEM with the owner's PUBLIC KEY: %w", ownerAnnotation, errdefs.ErrInvalidArgument)
	}
	if _, err := trust.ParseKey(block.Bytes); err != nil {
		return nil, fmt.Errorf("annotation %s: %w: %w", ownerAnnotation, err, errdefs.ErrInvalidArgument)
	}
	return &declared.Trust{Manifest: []byte(envelope), Owner: block.Bytes, Broker: annotations[brokerAnnotation]}, nil
}

// maxBundles is how many audit bundles of pods are kept; the oldest go.
const maxBundles = 256

// bundleOf is the file for the audit bundle of a pod. Names of pods are containerd's own.
func bundleOf(places *place.Places, id string) (string, error) {
	if id == "" || id != filepath.Base(id) || id[0] == '.' {
		return "", fmt.Errorf("the id %.80q is not a name: %w", id, errdefs.ErrInvalidArgument)
	}
	files, err := filepath.Glob(filepath.Join(places.Audit(), "*.json"))
	if err != nil {
		return "", err
	}
	if len(files) >= maxBundles {
		age := func(name string) time.Time {
			if info, err := os.Stat(name); err == nil {
				return info.ModTime()
			}
			return time.Time{}
		}
		slices.SortFunc(files, func(a, b string) int { return age(a).Compare(age(b)) })
		for _, old := range files[:len(files)-maxBundles+1] {
			os.Remove(old)
		}
	}
	if err := os.MkdirAll(places.Audit(), 0o700); err != nil {
		return "", fmt.Errorf("make the directory of audit bundles: %w", err)
	}
	return filepath.Join(places.Audit(), id+".json"), nil
}

// fillSealed makes a container in the machine of a confidential pod. containerd's mounts of its root are not used.
func (s *service) fillSealed(ctx context.Context, g *ground, c *container, b *bundle.Bundle) error {
	s.mu.Lock()
	x := s.box
	s.mu.Unlock()
	if x != nil {
		mountFiles(b.Spec, x.files)
	}
	plan, err := b.Plan(bundle.Environment{Joins: true, Disks: true})
	if err != nil {
		return err
	}
	defer plan.Close()
	if _, err := permit(g, b, plan, c.id); err != nil { // nothing of the host's is mounted
		return err
	}
	asked, resolver, err := workload.FromSpec(b.Spec, g.hostname)
	if err != nil {
		return fmt.Errorf("class confidential: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	name := b.Spec.Annotations["io.kubernetes.cri.image-name"]
	if name == "" {
		return fmt.Errorf("class confidential: containerd does not say which image the container is of: %w", errdefs.ErrInvalidArgument)
	}
	if c.init.io.stdin != "" {
		// The guest would refuse it; who asks shall not wait for a root filesystem to be made to hear so.
		return fmt.Errorf("class confidential: a container takes no input from its host (stdin): %w", errdefs.ErrInvalidArgument)
	}
	store, err := image.Open(g.places.Images())
	if err != nil {
		return err
	}
	img, err := takeImage(ctx, store, s.namespace, name)
	if err != nil {
		return err
	}
	root, release, err := store.Rootfs(ctx, img, nil)
	if err != nil {
		return err
	}
	defer release()
	r := &pod.SealedRequest{ID: c.id, Bundle: b.Dir, Root: root.File, Resolver: resolver}
	if r.Create, err = asked.Request(monitor.VerityOf(root)); err != nil {
		return fmt.Errorf("class confidential: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if r.Config, err = json.Marshal(b.Spec); err != nil {
		return err
	}
	streams, keeper, err := c.init.io.open(s.namespace, c.id)
	if err != nil {
		return err
	}
	c.init.keep(keeper)
	err = g.pod.CreateSealed(ctx, r, pod.Attendant{Streams: streams, Ended: c.init.end})
	if err != nil {
		c.init.mu.Lock()
		c.init.closeInput()
		c.init.mu.Unlock()
	}
	return err
}

// sealedStats are the counters of a container of a confidential pod: nobody asks the guest for what it would refuse, which would be
// a denial in its log at each of the kubelet's questions.
func sealedStats(ctx context.Context, g *ground, id string) (*agent.StatsResponse, error) {
	if !g.pod.Permits("stats") {
		return nil, fmt.Errorf(`the manifest does not permit the call "stats": %w`, errdefs.ErrNotImplemented)
	}
	return g.pod.Stats(ctx, id)
}

var errSealedSize = fmt.Errorf("update: a container of the class confidential keeps the limits of its manifest: %w", errdefs.ErrNotImplemented)
