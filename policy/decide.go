package policy

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"manis/image/signature"
	"manis/origin"
)

// ErrRefused is what every refusal is.
var ErrRefused = errors.New("the policy does not allow it")

// Finding is what one rule says.
type Finding struct {
	// Rule is its path in the file, and Origin the line there or the profile.
	Rule, Origin string
	// Asked and Allowed are for people.
	Asked, Allowed string
	Refused        bool
}

// String says it in one line.
func (f Finding) String() string {
	return fmt.Sprintf("%s (%s): asked for %s; allowed: %s", f.Rule, f.Origin, f.Asked, f.Allowed)
}

// Decision is what all rules say of one request, in the order of the file.
type Decision struct {
	File     string
	Findings []Finding
}

// Err returns nil where nothing is refused, else an error that is ErrRefused and names each rule that refuses.
func (d *Decision) Err() error {
	var said []string
	for _, f := range d.Findings {
		if f.Refused {
			said = append(said, f.String())
		}
	}
	if said == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %s", ErrRefused, d.File, strings.Join(said, "; and "))
}

// Check decides on a request and returns the refusal, if it is one.
func (p *Policy) Check(r *Request) error { return p.Decide(r).Err() }

// Decide says what each rule means for a request. A nil policy refuses nothing.
func (p *Policy) Decide(r *Request) *Decision {
	d := &decider{Policy: p, Request: r}
	if p == nil {
		return &d.Decision
	}
	d.Decision.File = p.File
	d.image()
	d.mounts()
	d.devices()
	d.process()
	d.network()
	d.sizes()
	return &d.Decision
}

// decider collects findings.
type decider struct {
	*Policy
	*Request
	Decision Decision
}

func (d *decider) say(ok bool, rule, asked, allowed string) {
	d.Decision.Findings = append(d.Decision.Findings, Finding{Rule: rule, Origin: d.origin(rule), Asked: asked, Allowed: allowed, Refused: !ok})
}

// narrow reports whether the rules of images say anything.
func (i *Images) narrow() bool {
	return i.Digests || len(i.Signatures) > 0 || !slices.Contains(i.Allow, "**")
}

// Signs reports whether an image needs a signature.
func (p *Policy) Signs(names []string) bool {
	return p != nil && slices.ContainsFunc(p.Images.Signatures, func(s Signature) bool { return matching(s.Images, names) })
}

func matching(patterns []Pattern, names []string) bool {
	return slices.ContainsFunc(patterns, func(p Pattern) bool { return slices.ContainsFunc(names, p.matches) })
}

func (d *decider) image() {
	rules := &d.Images
	if d.Engine != nil && !d.Engine.NoImage && d.Process != nil && rules.narrow() {
		d.say(rules.Engines == "trust", "images.engines",
			"a container of an engine, which does not say which image it is from",
			choose(rules.Engines == "trust", "what the engine trusts", "none while there are rules for images (images.engines: trust leaves them to the engine)"))
	}
	i := d.Request.Image
	if i == nil {
		return
	}
	asked := "image " + i.Asked
	if len(i.Names) == 1 && i.Names[0] != i.Asked {
		asked += " (" + i.Names[0] + ")"
	}
	d.say(matching(rules.Allow, i.Names), "images.allow", asked, listed(rules.Allow, "none"))
	if rules.Digests {
		d.say(i.ByDigest, "images.digests", asked, "references with a digest, NAME@sha256:...")
	}
	if i.Remote {
		return
	}
	for n, s := range rules.Signatures {
		if !matching(s.Images, i.Names) {
			continue
		}
		var keys []*signature.Key
		var files []string
		for _, k := range s.Keys {
			keys, files = append(keys, k.Key), append(files, k.File)
		}
		_, err := signature.Verify(i.Signatures, keys, i.Digests)
		said := asked
		if err != nil && i.Missing != nil {
			err = i.Missing
		}
		if err != nil {
			said += ", of which is found: " + err.Error()
		}
		d.say(err == nil, "images.signatures", said, fmt.Sprintf("images signed by %s (entry %d)", strings.Join(files, " or "), n+1))
	}
}

func (d *decider) mounts() {
	var allowed []string
	for _, a := range d.Policy.Mounts.Allow {
		text := a.Path
		if a.ReadOnly {
			text += " read-only"
		}
		allowed = append(allowed, text)
	}
	text := choose(len(allowed) > 0, strings.Join(allowed, ", "), "no file of the host")
	for _, m := range d.Request.Mounts {
		asked := m.Source + choose(m.ReadOnly, ", read-only", ", writable")
		real, err := m.real()
		if err != nil {
			d.say(false, "mounts.allow", asked+", which leads nowhere: "+err.Error(), text)
			continue
		}
		if real != filepath.Clean(m.Source) {
			asked += " (it is " + real + ")"
		}
		if d.Policy.Mounts.Engines && d.Engine.owns(real) {
			d.say(true, "mounts.engines", asked, "what engines keep for a container")
			continue
		}
		d.say(slices.ContainsFunc(d.Policy.Mounts.Allow, func(a Path) bool { return a.holds(real, m.ReadOnly) }), "mounts.allow", asked, text)
	}
	for _, v := range d.Volumes {
		d.say(d.Policy.Mounts.Volumes, "mounts.volumes", "the volume "+v, choose(d.Policy.Mounts.Volumes, "volumes", "no volumes"))
	}
}

// real is where the mount's source is, without symbolic links.
func (m *Mount) real() (string, error) {
	if m.Opened == nil {
		return filepath.EvalSymlinks(m.Source)
	}
	o, err := origin.Of(m.Opened)
	return o.Path, err
}

// holds reports whether a path without symbolic links is this one or below it, and may be mounted so.
func (a Path) holds(real string, readOnly bool) bool {
	if a.ReadOnly && !readOnly {
		return false
	}
	root, err := filepath.EvalSymlinks(a.Path)
	if err != nil {
		return false
	}
	return root == "/" || real == root || strings.HasPrefix(real, root+"/")
}

// ownedFiles are where engines keep what they put into their containers, by the parts of the paths. $ID is the container, $SANDBOX the
// pod's container, $POD the pod of Kubernetes; a path that needs one that is not known matches nothing.
var ownedFiles = []string{
	"**/pods/$POD/**", // volumes of Kubernetes, /etc/hosts, the termination log
	"**/io.containerd.grpc.v1.cri/sandboxes/$SANDBOX/**", // containerd: resolv.conf, hostname, hosts, shm
	"**/containers/$ID/*", "**/containers/$ID/mounts/**", // dockerd: resolv.conf, hostname, hosts, shm
	"**/docker/volumes/*/_data/**", "**/docker/volumes/*/_data", // volumes of dockerd
	"**/*-containers/*/userdata/**", // Podman: the same files, those of the pod's first container
	"**/storage/volumes/*/_data/**", "**/storage/volumes/*/_data",
}

// owns reports whether a path without symbolic links is where an engine keeps what it puts into this container.
func (e *Engine) owns(real string) bool {
	if e == nil {
		return false
	}
	if dir, err := filepath.EvalSymlinks(e.Dir); err == nil && e.Dir != "" && strings.HasPrefix(real, dir+"/") {
		return true
	}
	parts := strings.Split(real, "/")
	for _, pattern := range ownedFiles {
		known := true
		want := strings.Split(pattern, "/")
		for i, part := range want {
			id, variable := map[string]string{"$ID": e.ID, "$SANDBOX": e.Sandbox, "$POD": e.Pod}[part]
			if variable {
				want[i] = id
				// An id is compared as it is: what means something to a pattern is none.
				known = known && id != "" && !strings.ContainsAny(id, `*?[\/`)
			}
		}
		if known && match(want, parts) {
			return true
		}
	}
	return false
}

// everywhere are the devices that each container has, as the runtime-spec wants it.
var everywhere = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"}

func (d *decider) devices() {
	rules := d.Policy.Devices.Allow
	var asked, beyond []string
	for _, path := range d.Request.Devices {
		if slices.Contains(everywhere, path) {
			continue
		}
		asked = append(asked, path)
		if !slices.Contains(rules, "*") && !slices.Contains(rules, path) {
			beyond = append(beyond, path)
		}
	}
	switch {
	case beyond != nil:
		// An engine lists dozens for a privileged container.
		d.say(false, "devices.allow", "the device "+strings.Join(beyond, ", "), listed(rules, "none"))
	case asked != nil:
		d.say(true, "devices.allow", "the device "+strings.Join(asked, ", "), listed(rules, "none"))
	}
}

func (d *decider) process() {
	p := d.Request.Process
	if p == nil {
		return
	}
	rules := &d.Policy.Capabilities
	if p.Privileged {
		d.say(rules.Privileged, "capabilities.privileged", "a privileged process", choose(rules.Privileged, "privileged ones", "none"))
	}
	if p.Capabilities != nil {
		var beyond []string
		for _, c := range p.Capabilities {
			if c = bare(c); !slices.Contains(rules.Allow, c) && !slices.Contains(rules.Allow, "ALL") && !slices.Contains(beyond, c) {
				beyond = append(beyond, c)
			}
		}
		slices.Sort(beyond)
		asked := fmt.Sprintf("%d capabilities", len(p.Capabilities))
		if beyond != nil {
			asked = "the capabilities " + strings.Join(beyond, ", ") + " (drop what is not needed)"
		}
		d.say(beyond == nil, "capabilities.allow", asked, listed(rules.Allow, "none"))
	}
	if p.Escalation && !rules.Escalation {
		d.say(false, "capabilities.escalation", "processes that can gain privileges", "none that can (no-new-privileges, allowPrivilegeEscalation: false)")
	}
	if p.Unfiltered && !rules.Unfiltered {
		d.say(false, "capabilities.unfiltered", "processes without a filter of system calls", "none without (a seccomp profile)")
	}
	if p.User != Unasked {
		asked := map[User]string{Root: "the user root", NotRoot: "an ordinary user", Named: "a user by name, whose id only the image knows"}[p.User]
		d.say(d.Users.Root || p.User == NotRoot, "users.root", asked, choose(d.Users.Root, "any user", "users other than root, by number"))
	}
}

func (d *decider) network() {
	n := d.Request.Network
	if n == nil {
		return
	}
	rules := &d.Networks
	d.say(slices.Contains(rules.Allow, n.Mode), "networks.allow", "the network "+n.Mode, listed(rules.Allow, "none"))
	for _, port := range n.Publish {
		asked := "the port " + strconv.Itoa(int(port.Port)) + " of the host"
		if port.Port == 0 {
			asked = "any free port of the host"
		}
		if port.Address.IsValid() && !port.Address.IsUnspecified() {
			asked += " at " + port.Address.String()
		} else {
			asked += " at all of its addresses"
		}
		d.say(slices.ContainsFunc(rules.Publish, func(r Ports) bool { return r.holds(port) }), "networks.publish", asked, listed(rules.Publish, "none"))
	}
	if n.HostLoopback {
		d.say(rules.HostLoopback, "networks.hostLoopback", "the host's loopback", choose(rules.HostLoopback, "it", "not it"))
	}
	if n.LinkLocal {
		d.say(rules.LinkLocal, "networks.linkLocal", "link-local and metadata addresses", choose(rules.LinkLocal, "these", "none of these"))
	}
	if rules := d.Policy.Egress.Allow; rules != nil {
		// The frames of a namespace's interfaces never pass a stack of ours that could look at them.
		d.say(n.Mode != "namespace", "egress.allow", "the network "+n.Mode,
			"networks none and user, where connections can be held to: "+rules.String())
	} else if n.Egress != nil && n.Mode == "namespace" {
		d.say(false, "egress", "rules for what the container connects to, with the network namespace", "such rules with the network user")
	}
}

// firstFree is where ports begin that nobody has chosen.
const firstFree = 1024

func (r Ports) holds(p Port) bool {
	if r.Address.IsValid() && (!p.Address.IsValid() || p.Address.Unmap() != r.Address) {
		return false
	}
	if p.Port == 0 {
		return r.First <= firstFree && r.Last == math.MaxUint16
	}
	return r.First <= p.Port && p.Port <= r.Last
}

func (d *decider) sizes() {
	s, most := d.Request.Sizes, &d.Policy.Sizes
	if s == nil {
		return
	}
	if most.MemoryBytes > 0 && s.MemoryBytes > 0 {
		d.say(s.MemoryBytes <= most.MemoryBytes, "sizes.memory", fmt.Sprintf("%d bytes of memory", s.MemoryBytes), fmt.Sprintf("at most %d", most.MemoryBytes))
	}
	if most.MilliCPUs > 0 && s.MilliCPUs > 0 {
		d.say(s.MilliCPUs <= most.MilliCPUs, "sizes.cpus", processors(s.MilliCPUs)+" processors", "at most "+processors(most.MilliCPUs))
	}
	if most.Pids > 0 && s.Pids != 0 {
		asked := fmt.Sprintf("%d processes", s.Pids)
		if s.Pids < 0 {
			asked = "any number of processes"
		}
		d.say(s.Pids > 0 && s.Pids <= most.Pids, "sizes.pids", asked, fmt.Sprintf("at most %d (--pids-limit)", most.Pids))
	}
}

func processors(milli uint64) string { return strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64) }

func choose(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// listed is a list for people, with a word for the empty one.
func listed[T any](list []T, none string) string {
	if len(list) == 0 {
		return none
	}
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ", ")
}
