package workload

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"manis/container"
)

// Image is what of an image's configuration a container has.
type Image struct {
	Entrypoint, Cmd, Env []string
	Dir, User            string
	Volumes              []string
}

// Pod is what a pod's YAML asks for.
type Pod struct {
	// Containers are in the order in which the kubelet makes them: those of initContainers first, which complete.
	Containers []Member
	// Resources are the limits of the whole, on which the machine's size depends.
	Resources container.Resources
}

// Member is a container of a pod with its name, and the reference of its image.
type Member struct {
	Name, Image string
	Completes   bool
	Container
}

// The members of Kubernetes' objects that are understood. All others are refused: they could mean what this does not know of. Those of
// the type any decide nothing of what runs in the machine.
type (
	object struct {
		APIVersion string            `yaml:"apiVersion"`
		Kind       string            `yaml:"kind"`
		Metadata   metadata          `yaml:"metadata"`
		Spec       *podSpec          `yaml:"spec"`
		Data       map[string]string `yaml:"data"`
		Binary     map[string]string `yaml:"binaryData"`
		Immutable  any               `yaml:"immutable"`
	}
	metadata struct {
		Name        string `yaml:"name"`
		Namespace   any    `yaml:"namespace"`
		Labels      any    `yaml:"labels"`
		Annotations any    `yaml:"annotations"`
	}
	podSpec struct {
		Containers       []member         `yaml:"containers"`
		Init             []member         `yaml:"initContainers"`
		Volumes          []volume         `yaml:"volumes"`
		Hostname         string           `yaml:"hostname"`
		RestartPolicy    string           `yaml:"restartPolicy"`
		Token            *bool            `yaml:"automountServiceAccountToken"`
		ServiceLinks     *bool            `yaml:"enableServiceLinks"`
		Security         *securityContext `yaml:"securityContext"`
		RuntimeClass     any              `yaml:"runtimeClassName"`
		ServiceAccount   any              `yaml:"serviceAccountName"`
		NodeSelector     any              `yaml:"nodeSelector"`
		NodeName         any              `yaml:"nodeName"`
		Affinity         any              `yaml:"affinity"`
		Tolerations      any              `yaml:"tolerations"`
		Scheduler        any              `yaml:"schedulerName"`
		Priority         any              `yaml:"priorityClassName"`
		Grace            any              `yaml:"terminationGracePeriodSeconds"`
		Deadline         any              `yaml:"activeDeadlineSeconds"`
		DNSPolicy        any              `yaml:"dnsPolicy"`
		DNSConfig        any              `yaml:"dnsConfig"`
		PullSecrets      any              `yaml:"imagePullSecrets"`
		TopologySpread   any              `yaml:"topologySpreadConstraints"`
		PreemptionPolicy any              `yaml:"preemptionPolicy"`
	}
	member struct {
		Name       string           `yaml:"name"`
		Image      string           `yaml:"image"`
		Command    []string         `yaml:"command"`
		Args       []string         `yaml:"args"`
		Dir        string           `yaml:"workingDir"`
		Env        []variable       `yaml:"env"`
		EnvFrom    []envFrom        `yaml:"envFrom"`
		Mounts     []mount          `yaml:"volumeMounts"`
		Security   *securityContext `yaml:"securityContext"`
		Resources  resources        `yaml:"resources"`
		Ports      any              `yaml:"ports"`
		PullPolicy any              `yaml:"imagePullPolicy"`
		Liveness   *probe           `yaml:"livenessProbe"`
		Readiness  *probe           `yaml:"readinessProbe"`
		Startup    *probe           `yaml:"startupProbe"`
		Last       any              `yaml:"terminationMessagePolicy"`
	}
	variable struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
		From  *struct {
			ConfigMap *struct {
				Name string `yaml:"name"`
				Key  string `yaml:"key"`
			} `yaml:"configMapKeyRef"`
		} `yaml:"valueFrom"`
	}
	envFrom struct {
		Prefix    string `yaml:"prefix"`
		ConfigMap *struct {
			Name string `yaml:"name"`
		} `yaml:"configMapRef"`
	}
	mount struct {
		Name     string `yaml:"name"`
		Path     string `yaml:"mountPath"`
		ReadOnly bool   `yaml:"readOnly"`
	}
	volume struct {
		Name      string         `yaml:"name"`
		Empty     map[string]any `yaml:"emptyDir"`
		ConfigMap *struct {
			Name string `yaml:"name"`
			Mode *int   `yaml:"defaultMode"`
		} `yaml:"configMap"`
	}
	securityContext struct {
		User         *int64 `yaml:"runAsUser"`
		Group        *int64 `yaml:"runAsGroup"`
		NonRoot      any    `yaml:"runAsNonRoot"`
		ReadOnly     bool   `yaml:"readOnlyRootFilesystem"`
		Escalation   *bool  `yaml:"allowPrivilegeEscalation"`
		Capabilities struct {
			Add  []string `yaml:"add"`
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
		Seccomp *struct {
			Type string `yaml:"type"`
		} `yaml:"seccompProfile"`
	}
	resources struct {
		Limits   map[string]string `yaml:"limits"`
		Requests any               `yaml:"requests"`
	}
	probe struct {
		Exec any            `yaml:"exec"`
		Rest map[string]any `yaml:",inline"`
	}
)

// ReadPod reads the YAML of one pod, with the ConfigMaps that it uses as further documents. Images are asked for by their references.
func ReadPod(text []byte, image func(reference string) (*Image, error)) (*Pod, error) {
	var pod *object
	maps := make(map[string]*object)
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	for {
		o := new(object)
		err := d.Decode(o)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the pod: %w (what is not understood is refused: it could change what runs)", err)
		}
		switch {
		case o.Kind == "ConfigMap" && o.Spec == nil:
			maps[o.Metadata.Name] = o
		case o.Kind == "Pod" && pod == nil && o.Spec != nil:
			pod = o
		default:
			return nil, fmt.Errorf("read the pod: a document of kind %q: there is one Pod, and ConfigMaps", o.Kind)
		}
	}
	if pod == nil {
		return nil, errors.New("read the pod: there is none")
	}
	r := &reader{pod: pod.Spec, hostname: cmp.Or(pod.Spec.Hostname, pod.Metadata.Name), maps: maps, image: image}
	if len(r.hostname) > 63 {
		return nil, fmt.Errorf("the pod's host name %q has more than 63 characters: give it a hostname", r.hostname)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("pod %s: %w", pod.Metadata.Name, err)
	}
	p := new(Pod)
	for i, m := range slices.Concat(pod.Spec.Init, pod.Spec.Containers) {
		c, err := r.container(&m)
		if err != nil {
			return nil, fmt.Errorf("pod %s: container %s: %w", pod.Metadata.Name, m.Name, err)
		}
		p.Containers = append(p.Containers, Member{Name: m.Name, Image: m.Image, Completes: i < len(pod.Spec.Init), Container: *c})
	}
	p.Resources = sum(p.Containers)
	return p, nil
}

// reader turns one pod.
type reader struct {
	pod      *podSpec
	hostname string
	maps     map[string]*object
	image    func(string) (*Image, error)
}

// check refuses what would put something of the cluster's into the containers.
func (r *reader) check() error {
	no := func(b *bool) bool { return b != nil && !*b }
	switch {
	case len(r.pod.Containers) == 0:
		return errors.New("there are no containers")
	case r.pod.RestartPolicy != "Never":
		return errors.New("restartPolicy: Never is needed: a container of a manifest runs once")
	case !no(r.pod.Token):
		return errors.New("automountServiceAccountToken: false is needed: a token comes from the cluster, secrets from the broker")
	case !no(r.pod.ServiceLinks):
		return errors.New("enableServiceLinks: false is needed: else the variables of a container are those of the cluster's services")
	}
	return nil
}

func (r *reader) container(m *member) (*Container, error) {
	for _, p := range []*probe{m.Liveness, m.Readiness, m.Startup} {
		if p != nil && p.Exec != nil {
			return nil, errors.New("a probe executes a command, which nobody may in a container of the class confidential (httpGet, tcpSocket and grpc can)")
		}
	}
	img, err := r.image(m.Image)
	if err != nil {
		return nil, err
	}
	c := &Container{Config: container.Config{Hostname: r.hostname}}
	p := &c.Config.Process
	switch {
	case len(m.Command) > 0:
		p.Args = slices.Concat(m.Command, m.Args)
	case len(m.Args) > 0:
		p.Args = slices.Concat(img.Entrypoint, m.Args)
	default:
		p.Args = slices.Concat(img.Entrypoint, img.Cmd)
	}
	for _, a := range slices.Concat(m.Command, m.Args) {
		if strings.Contains(a, "$(") {
			return nil, fmt.Errorf("argument %q: write out what $(...) stands for", a)
		}
	}
	p.Dir = cmp.Or(m.Dir, img.Dir, "/")
	if p.Env, err = r.env(m, img.Env); err != nil {
		return nil, err
	}
	if err := r.security(c, m, img); err != nil {
		return nil, err
	}
	if err := c.limit(m.Resources.Limits); err != nil {
		return nil, err
	}
	if err := r.mounts(c, m); err != nil {
		return nil, err
	}
	for _, v := range img.Volumes {
		if !slices.ContainsFunc(m.Mounts, func(m mount) bool { return path.Clean(m.Path) == path.Clean(v) }) {
			return nil, fmt.Errorf("the image declares a volume at %s, which the node would make: mount an emptyDir there", v)
		}
	}
	return c, nil
}

func (r *reader) env(m *member, env []string) ([]string, error) {
	for _, from := range m.EnvFrom {
		if from.ConfigMap == nil {
			return nil, errors.New("envFrom: a ConfigMap is the only source (for a secret: the broker's)")
		}
		o := r.maps[from.ConfigMap.Name]
		if o == nil {
			return nil, fmt.Errorf("envFrom: ConfigMap %s is not among the documents", from.ConfigMap.Name)
		}
		for k, v := range o.Data {
			env = append(env, from.Prefix+k+"="+v)
		}
	}
	for _, v := range m.Env {
		if v.From != nil {
			ref := v.From.ConfigMap
			if ref == nil || r.maps[ref.Name] == nil {
				return nil, fmt.Errorf("env %s: its value is not that of a ConfigMap among the documents", v.Name)
			}
			value, ok := r.maps[ref.Name].Data[ref.Key]
			if !ok {
				return nil, fmt.Errorf("env %s: ConfigMap %s has no %s", v.Name, ref.Name, ref.Key)
			}
			v.Value = value
		} else if strings.Contains(v.Value, "$(") {
			return nil, fmt.Errorf("env %s: write out what $(...) stands for", v.Name)
		}
		env = append(env, v.Name+"="+v.Value)
	}
	return env, nil
}

func (r *reader) security(c *Container, m *member, img *Image) error {
	own := m.Security
	if own == nil {
		own = new(securityContext)
	}
	shared := r.pod.Security
	if shared == nil {
		shared = new(securityContext)
	}
	if shared.ReadOnly || shared.Escalation != nil || len(shared.Capabilities.Add)+len(shared.Capabilities.Drop) > 0 {
		return errors.New("securityContext of the pod: has members of a container's")
	}
	user, group := cmp.Or(own.User, shared.User), cmp.Or(own.Group, shared.Group)
	switch {
	case user != nil && group != nil:
		c.Config.Process.User = fmt.Sprintf("%d:%d", *user, *group)
	case user == nil && group == nil && slices.Contains([]string{"", "0", "root", "0:0"}, img.User):
		c.Config.Process.User = "0:0"
	case user == nil && group == nil && numbers(img.User):
		c.Config.Process.User = img.User
	default:
		return fmt.Errorf("securityContext: runAsUser and runAsGroup are needed, as the image's user %q is not two numbers, or only one of them is given", img.User)
	}
	for _, s := range []*securityContext{own, shared} {
		if s.Seccomp != nil && s.Seccomp.Type == "Localhost" {
			return errors.New("securityContext: a seccompProfile is not taken: the class confidential has Manis' own, always")
		}
	}
	c.Config.ReadOnly = own.ReadOnly
	c.Config.Security = container.Security{
		CapAdd: own.Capabilities.Add, CapDrop: own.Capabilities.Drop, NoNewPrivileges: own.Escalation != nil && !*own.Escalation,
	}
	return nil
}

// numbers reports whether an image's user is UID:GID.
func numbers(user string) bool {
	uid, gid, ok := strings.Cut(user, ":")
	_, errU := strconv.ParseUint(uid, 10, 32)
	_, errG := strconv.ParseUint(gid, 10, 32)
	return ok && errU == nil && errG == nil
}

func (c *Container) limit(limits map[string]string) error {
	for name, text := range limits {
		n, err := quantity(text)
		if err != nil {
			return fmt.Errorf("resources.limits.%s: %w", name, err)
		}
		switch name {
		case "memory":
			c.Config.Resources.MemoryBytes = uint64(math.Ceil(n))
		case "cpu":
			// As the kubelet does, which gives at least a hundredth.
			c.Config.Resources.MilliCPUs = max(10, uint64(math.Ceil(n*1000)))
		case "ephemeral-storage":
		default:
			return fmt.Errorf("resources.limits.%s: a container of the class confidential has memory and processors", name)
		}
	}
	return nil
}

// suffixes of Kubernetes' quantities.
var suffixes = []struct {
	name   string
	factor float64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"m", 1e-3}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12},
}

func quantity(text string) (float64, error) {
	number, factor := text, 1.0
	for _, s := range suffixes {
		if n, ok := strings.CutSuffix(text, s.name); ok {
			number, factor = n, s.factor
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n <= 0 || n*factor > 1<<50 {
		return 0, fmt.Errorf("%q is no quantity that is understood", text)
	}
	return n * factor, nil
}

func (r *reader) mounts(c *Container, m *member) error {
	for _, at := range m.Mounts {
		i := slices.IndexFunc(r.pod.Volumes, func(v volume) bool { return v.Name == at.Name })
		if i < 0 {
			return fmt.Errorf("volumeMounts: there is no volume %s", at.Name)
		}
		switch v := r.pod.Volumes[i]; {
		case v.ConfigMap != nil:
			o := r.maps[v.ConfigMap.Name]
			if o == nil {
				return fmt.Errorf("volume %s: ConfigMap %s is not among the documents", v.Name, v.ConfigMap.Name)
			}
			mode := uint32(0o644)
			if v.ConfigMap.Mode != nil {
				mode = uint32(*v.ConfigMap.Mode)
			}
			for key, text := range o.Data {
				c.Files = append(c.Files, File{Path: path.Join(at.Path, key), Mode: mode, Content: []byte(text)})
			}
			for key, text := range o.Binary {
				b, err := base64.StdEncoding.DecodeString(text)
				if err != nil {
					return fmt.Errorf("ConfigMap %s: %s: %w", v.ConfigMap.Name, key, err)
				}
				c.Files = append(c.Files, File{Path: path.Join(at.Path, key), Mode: mode, Content: b})
			}
		case v.Empty != nil:
			c.Volumes = append(c.Volumes, Volume{Name: v.Name, Destination: at.Path, ReadOnly: at.ReadOnly})
		default:
			return fmt.Errorf("volume %s: emptyDir (written {}, if it has no members) and configMap are what there is in the class confidential", v.Name)
		}
	}
	return nil
}

// sum are the limits of a pod as the kubelet counts them: where a container has none, the pod has none.
func sum(list []Member) container.Resources {
	var all, most container.Resources
	memory, cpus := true, true
	for _, m := range list {
		r := m.Config.Resources
		memory, cpus = memory && r.MemoryBytes > 0, cpus && r.MilliCPUs > 0
		if m.Completes {
			most.MemoryBytes, most.MilliCPUs = max(most.MemoryBytes, r.MemoryBytes), max(most.MilliCPUs, r.MilliCPUs)
			continue
		}
		all.MemoryBytes += r.MemoryBytes
		all.MilliCPUs += r.MilliCPUs
	}
	all.MemoryBytes, all.MilliCPUs = max(all.MemoryBytes, most.MemoryBytes), max(all.MilliCPUs, most.MilliCPUs)
	if !memory {
		all.MemoryBytes = 0
	}
	if !cpus {
		all.MilliCPUs = 0
	}
	return all
}
