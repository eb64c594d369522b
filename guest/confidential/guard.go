// Package confidential is what makes an agent that of a confidential machine: it lets the host do what the
// manifest says, in the order that it says, and nothing else; it proves that by the TPM; it keeps the log. The agent asks it
// before every request (agent.Guard); the host speaks to it by a service of its own (api/confidential).
//
// It is in a binary of its own, so that the agent of every other class knows nothing of it.
package confidential

import (
	"context"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
	api "manis/api/confidential"
	"manis/attest"
	"manis/attest/tpm"
	"manis/audit"
	"manis/broker/release"
	"manis/trust"
)

// device is the TPM, with the kernel's resource manager between.
const device = "/dev/tpmrm0"

// Guard is the state machine of one confidential machine.
type Guard struct {
	mu sync.Mutex

	// network is what Setup has connected.
	network string

	// Of Admit, and nil before.
	manifest *trust.Manifest
	digest   []byte
	owner    string
	tpm      *tpm.TPM
	channel  hpke.PrivateKey
	signer   ed25519.PublicKey
	log      *audit.Log

	binding []byte            // of the last evidence
	secrets map[string][]byte // nil: not released
	// created are containers of the manifest that were made, in its order, by the host's ids; started says which run,
	// ended with which exit code.
	created []string
	started map[string]bool
	ended   map[string]uint32
	// disks are the encrypted ones of containers, by the host's ids.
	disks map[string]*watched
}

// New makes the guard of a machine that has just booted.
func New() *Guard {
	return &Guard{started: make(map[string]bool), ended: make(map[string]uint32), disks: make(map[string]*watched)}
}

// Register adds the service by which the host hands documents over.
func (g *Guard) Register(server *ttrpc.Server) { api.RegisterConfidentialService(server, g) }

// own is the prefix of the guard's own methods.
const own = "/manis.confidential.v1.Confidential/"

// Before says whether a request may be served; it may complete it. It is called with the decoded request.
func (g *Guard) Before(method string, request any) error {
	if strings.HasPrefix(method, own) {
		return nil // each checks for itself
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	name := method[strings.LastIndexByte(method, '/')+1:]
	err := g.permit(name, request)
	if err == nil {
		return nil
	}
	if g.log != nil {
		g.log.Add(audit.Denied, map[string]string{"request": name, "reason": err.Error()})
	}
	return status.Errorf(codes.PermissionDenied, "refused by the manifest: %s: %v", name, err)
}

// permit decides; g.mu is held.
func (g *Guard) permit(name string, request any) error {
	if m, ok := request.(proto.Message); ok && len(m.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("the request has a member that this release does not know")
	}
	switch r := request.(type) {
	case *agent.SetupRequest:
		return g.permitSetup(r)
	case *agent.CreateContainerRequest:
		return g.permitCreate(r)
	case *agent.StartContainerRequest:
		switch {
		case !g.has(r.Id):
			return errors.New("there is no such container")
		case g.started[r.Id]:
			return errors.New("the container runs already, or has run")
		}
		g.started[r.Id] = true
		g.log.Add(audit.Started, map[string]string{"container": g.index(r.Id)})
		return nil
	case *agent.WaitRequest:
		if r.ExecId != "" || !g.has(r.Id) {
			return errors.New("there is no such process")
		}
		return nil
	case *agent.SignalRequest:
		switch {
		case r.ExecId != "" || !g.has(r.Id):
			return errors.New("there is no such process")
		case r.Signal != uint32(unix.SIGTERM) && r.Signal != uint32(unix.SIGKILL) && !g.manifest.Permits("signal"):
			return fmt.Errorf(`signal %d: the manifest does not permit the call "signal"`, r.Signal)
		}
		return nil
	}
	switch name {
	case "Shutdown":
		return nil
	case "RemoveContainer":
		return nil
	case "Stats":
		return g.permitCall("stats")
	case "Pause", "Resume":
		return g.permitCall("pause")
	}
	return errors.New("the class confidential has no such request")
}

func (g *Guard) permitCall(call string) error {
	if g.manifest == nil || !g.manifest.Permits(call) {
		return fmt.Errorf("the manifest does not permit the call %q", call)
	}
	return nil
}

// ofInterface are the kernel parameters that an interface may come with, below /proc/sys.
var ofInterface = regexp.MustCompile(`^net/ipv[46]/(conf|neigh)/[A-Za-z0-9][A-Za-z0-9_.@-]*/[a-z0-9_]+$`)

// permitSetup: once, before there is a manifest, and nothing of it but names and the network.
func (g *Guard) permitSetup(r *agent.SetupRequest) error {
	switch {
	case g.network != "":
		return errors.New("the machine is set up already")
	case len(r.Entropy) > 0:
		return errors.New("entropy: random numbers do not come from the host")
	case r.ClockUnixNs != 0:
		return errors.New("clock_unix_ns: the clock is not set by the host")
	case len(r.Shares) > 0:
		return errors.New("shares: the host has nothing to share with this machine")
	case len(r.Sysctls) > 0:
		return errors.New("sysctls: the machine's are what they are")
	}
	if r.GetNetwork().GetDevice() != "" && len(r.Network.Interfaces) > 0 {
		return errors.New("network: it is of two kinds")
	}
	for _, i := range r.GetNetwork().GetInterfaces() {
		for name := range i.Sysctls {
			if !ofInterface.MatchString(name) {
				return fmt.Errorf("network: %.60q is no kernel parameter of an interface", name)
			}
		}
	}
	g.network = "none"
	if r.GetNetwork().GetDevice() != "" {
		g.network = "user"
	} else if len(r.GetNetwork().GetInterfaces()) > 0 {
		g.network = "pod"
	}
	return nil
}

// permitCreate compares a container with the manifest's next one, and gives it the secrets.
func (g *Guard) permitCreate(r *agent.CreateContainerRequest) error {
	switch {
	case g.manifest == nil:
		return errors.New("there is no manifest")
	case g.manifest.Broker != nil && g.secrets == nil:
		return errors.New("the manifest's broker has not released the secrets")
	case g.has(r.Id):
		return errors.New("there is a container of this name")
	}
	c, err := trust.Of(r, g.manifest.Permits("logs"))
	if err != nil {
		return err
	}
	next := len(g.created)
	if err := g.manifest.Match(next, c); err != nil {
		return err
	}
	for i, id := range g.created {
		if code, ended := g.ended[id]; g.manifest.Containers[i].Completes && (!ended || code != 0) {
			return fmt.Errorf("containers[%d]: containers[%d] has not ended with exit code 0 yet, as it has to before", next, i)
		}
	}
	if next == 0 {
		for _, s := range g.manifest.Secrets {
			r.Files = append(r.Files, &agent.File{Path: s.Path, Content: g.secrets[s.Name], Mode: s.Mode})
		}
	}
	g.created = append(g.created, r.Id)
	what := map[string]string{"container": g.index(r.Id), "root": c.Root.Hash}
	if c.Root.DiskBytes != 0 {
		what["disk"] = fmt.Sprint(c.Root.DiskBytes)
	}
	g.log.Add(audit.Created, what)
	return nil
}

func (g *Guard) has(id string) bool { return g.index(id) != "" }

// index is a container's place in the manifest; empty: it is none of it.
func (g *Guard) index(id string) string {
	for i, c := range g.created {
		if c == id {
			return fmt.Sprint(i)
		}
	}
	return ""
}

// After takes note of what a request has shown.
func (g *Guard) After(method string, request, reply any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := request.(*agent.WaitRequest)
	w, replied := reply.(*agent.WaitResponse)
	if !ok || !replied || w == nil || !g.has(r.Id) {
		return
	}
	if _, known := g.ended[r.Id]; known {
		return
	}
	g.ended[r.Id] = w.ExitCode
	if d := g.disks[r.Id]; d != nil {
		g.look(r.Id, d, true)
	}
	g.log.Add(audit.Exited, map[string]string{"container": g.index(r.Id), "code": fmt.Sprint(w.ExitCode)})
	if len(g.ended) == len(g.manifest.Containers) {
		g.log.Add(audit.Closed, nil)
	}
}

// Failed notes that a container could not be made or started. One that was not made can be tried again: nothing of it is there.
func (g *Guard) Failed(method string, request any, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch r := request.(type) {
	case *agent.CreateContainerRequest:
		if last := len(g.created) - 1; last >= 0 && g.created[last] == r.Id {
			g.log.Add(audit.Failed, map[string]string{"container": g.index(r.Id), "request": "CreateContainer", "reason": short(err)})
			g.created = g.created[:last]
		}
	case *agent.StartContainerRequest:
		g.log.Add(audit.Failed, map[string]string{"container": g.index(r.Id), "request": "StartContainer", "reason": short(err)})
	}
}

// maxReason bounds a reason in the log, bytes.
const maxReason = 500

func short(err error) string {
	text := err.Error()
	return strings.ToValidUTF8(text[:min(len(text), maxReason)], "")
}

// Admit implements the service.
func (g *Guard) Admit(ctx context.Context, r *api.AdmitRequest) (*api.AdmitResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	refuse := func(err error) (*api.AdmitResponse, error) {
		if g.log != nil {
			g.log.Add(audit.Denied, map[string]string{"request": "Admit", "reason": err.Error()})
		}
		return nil, status.Errorf(codes.PermissionDenied, "admit the manifest: %v", err)
	}
	if g.manifest != nil {
		return refuse(errors.New("another one is in force"))
	}
	owner, err := trust.ParseKey(r.Owner)
	if err != nil {
		return refuse(err)
	}
	m, canonical, err := trust.Open(r.Envelope, owner)
	if err != nil {
		return refuse(err)
	}
	switch {
	case time.Now().After(m.Expires):
		return refuse(fmt.Errorf("expires: it was valid until %s", m.Expires.Format(time.RFC3339)))
	case g.network != m.Network:
		return refuse(fmt.Errorf("network: the manifest says %q, the machine has %q", m.Network, g.network))
	}
	if err := g.enforce(m, trust.Digest(canonical), trust.KeyID(owner)); err != nil {
		return nil, status.Errorf(codes.Unavailable, "admit the manifest: %v", err)
	}
	return &api.AdmitResponse{Digest: g.digest}, nil
}

// enforce makes the machine's keys and binds the manifest to its measurements.
func (g *Guard) enforce(m *trust.Manifest, digest []byte, owner string) error {
	conn, err := linuxtpm.Open(device)
	if err != nil {
		return fmt.Errorf("open the TPM: %w", err)
	}
	t, err := tpm.New(conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	channel, err := release.NewKey()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	signer, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	if err := t.Extend(attest.PCRManifest, attest.ManifestEvent(digest, owner)); err != nil {
		return errors.Join(err, conn.Close())
	}
	g.manifest, g.digest, g.owner = m, digest, owner
	g.tpm, g.channel, g.signer = t, channel, signer
	g.log = audit.New(key, digest)
	g.log.Add(audit.Admitted, map[string]string{"owner": owner, "version": fmt.Sprint(m.Version)})
	return nil
}

var errNoManifest = status.Error(codes.FailedPrecondition, "there is no manifest")

// Attest implements the service.
func (g *Guard) Attest(ctx context.Context, r *api.AttestRequest) (*api.AttestResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.manifest == nil {
		return nil, errNoManifest
	}
	if len(r.Nonce) < attest.MinNonce || len(r.Nonce) > attest.MaxNonce {
		return nil, status.Errorf(codes.InvalidArgument, "a nonce of %d bytes: want %d to %d", len(r.Nonce), attest.MinNonce, attest.MaxNonce)
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	e := &attest.Evidence{
		Nonce: r.Nonce, Channel: g.channel.PublicKey().Bytes(), Signer: trust.KeyDER(g.signer),
		Manifest: g.digest, Owner: g.owner, Cmdline: strings.TrimSuffix(string(cmdline), "\n"),
	}
	if err := g.tpm.Quote(e); err != nil {
		return nil, status.Errorf(codes.Unavailable, "%v", err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	g.binding = attest.Binding(e.Nonce, e.Channel, e.Signer, e.Manifest, e.Owner)
	g.log.Add(audit.Attested, map[string]string{"nonce": base64.StdEncoding.EncodeToString(r.Nonce)})
	return &api.AttestResponse{Evidence: b}, nil
}

// Release implements the service.
func (g *Guard) Release(ctx context.Context, r *api.ReleaseRequest) (*api.ReleaseResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.manifest == nil {
		return nil, errNoManifest
	}
	refuse := func(err error) (*api.ReleaseResponse, error) {
		g.log.Add(audit.Denied, map[string]string{"request": "Release", "reason": err.Error()})
		return nil, status.Errorf(codes.PermissionDenied, "take the secrets: %v", err)
	}
	switch {
	case g.manifest.Broker == nil:
		return refuse(errors.New("the manifest names no broker"))
	case g.secrets != nil:
		return refuse(errors.New("they were released already"))
	case g.binding == nil:
		return refuse(errors.New("there was no attestation"))
	}
	key, err := trust.ParseKey(g.manifest.Broker.Key)
	if err != nil {
		return refuse(err)
	}
	secrets, made, err := release.Open(r.Release, key, g.binding, g.channel)
	if err != nil {
		return refuse(err)
	}
	for _, s := range g.manifest.Secrets {
		if _, ok := secrets[s.Name]; !ok {
			return refuse(fmt.Errorf("the secret %s is missing", s.Name))
		}
	}
	g.secrets = secrets
	g.log.Add(audit.Released, map[string]string{"binding": hex.EncodeToString(made.Binding), "hardware": made.Hardware})
	return &api.ReleaseResponse{}, nil
}

// maxEvents is how many entries one answer has.
const maxEvents = 256

// Events implements the service.
func (g *Guard) Events(ctx context.Context, r *api.EventsRequest) (*api.EventsResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.manifest == nil {
		return nil, errNoManifest
	}
	return &api.EventsResponse{Events: g.log.From(int(r.From), maxEvents)}, nil
}
