package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"manis/attest"
	"manis/broker"
	"manis/cli/declare"
	"manis/container"
	"manis/monitor"
	"manis/trust"
)

func (a *app) trustCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Make and sign manifests of confidential containers, measure the guest, release secrets",
		Args:  needs(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.keygenCommand(), a.manifestCommand(), a.signCommand(), a.measureCommand(), a.deciding(a.brokerCommand()))
	return cmd
}

func (a *app) keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "keygen NAME",
		Short:   "Make an ed25519 key: NAME.key, to be kept secret, and NAME.pub",
		Example: `  manis trust keygen owner`,
		Args:    needs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			public, private, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKCS8PrivateKey(private)
			if err != nil {
				return err
			}
			for _, f := range []struct {
				name, kind string
				mode       os.FileMode
				der        []byte
			}{{args[0] + ".key", "PRIVATE KEY", 0o600, der}, {args[0] + ".pub", "PUBLIC KEY", 0o644, trust.KeyDER(public)}} {
				if err := writeKey(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), f.mode); err != nil {
					return err
				}
			}
			fmt.Fprintln(a.out, trust.KeyID(public))
			return nil
		},
	}
}

// writeKey writes a file that must not be there yet.
func writeKey(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	return f.Close()
}

// readPrivateKey reads what keygen has written.
func readPrivateKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the private key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("read the private key: %s is no PEM file with a PRIVATE KEY", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the private key %s: %w", path, err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read the private key %s: it is not ed25519 (make one with manis trust keygen)", path)
	}
	return private, nil
}

// put writes to a file, or to standard output where there is none.
func (a *app) put(path string, b []byte) error {
	b = append(b, '\n')
	if path == "" || path == "-" {
		_, err := a.out.Write(b)
		return err
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return fmt.Errorf("write what -o names: %w", err)
	}
	return nil
}

// manifestFlags are those of the manifest, besides those of the container.
type manifestFlags struct {
	calls, secrets       []string
	brokerURL, brokerKey string
	version              uint64
	valid                time.Duration
	output, pod          string
}

func (a *app) manifestCommand() *cobra.Command {
	f, o := &declare.Flags{Drafting: true}, new(manifestFlags)
	cmd := &cobra.Command{
		Use:   "manifest [OPTIONS] IMAGE [COMMAND] [ARG...] | manifest [OPTIONS] --pod FILE",
		Short: "Make the manifest of a confidential container from the options of run, or of a pod from its YAML",
		Example: `  manis trust manifest --calls logs -o m.json busybox cat /etc/hostname
  manis trust sign --key owner.key -o m.dsse m.json
  manis trust manifest --calls logs --pod pod.yaml -o m.json`,
		Args: needs(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.pod != "" && len(args) > 0:
				return errors.New("--pod has its images in the YAML: there are no arguments")
			case o.pod != "":
				return a.podManifest(cmd.Context(), o)
			case len(args) == 0:
				return errors.New("requires at least 1 argument: an image (or --pod)")
			}
			if err := cmd.Flags().Set("class", container.Confidential); err != nil {
				return err
			}
			return a.manifest(cmd.Context(), f, o, args)
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	f.Register(fs)
	fs.StringSliceVar(&o.calls, "calls", nil, "What the host may ask for ("+strings.Join(trust.Calls, ", ")+")")
	fs.StringArrayVar(&o.secrets, "secret", nil, "A secret of the broker's, and the file that it becomes (NAME=PATH[:MODE])")
	fs.StringVar(&o.brokerURL, "broker-url", "", "Where the broker is")
	fs.StringVar(&o.brokerKey, "broker-key", "", "The broker's public key")
	fs.Uint64Var(&o.version, "version", 1, "Number of this manifest among the owner's for the workload")
	fs.DurationVar(&o.valid, "valid", 90*24*time.Hour, "How long it is valid")
	fs.StringVarP(&o.output, "output", "o", "", "Write to a file, instead of STDOUT")
	fs.StringVar(&o.pod, "pod", "", "A pod's YAML, with the ConfigMaps that it uses; of the options only those of the manifest count")
	return cmd
}

func (a *app) manifest(ctx context.Context, f *declare.Flags, o *manifestFlags, args []string) error {
	cfg, err := a.draft(ctx, f, args)
	if err != nil {
		return err
	}
	places, err := a.places()
	if err != nil {
		return err
	}
	request, err := monitor.Request(ctx, places, cfg)
	if err != nil {
		return err
	}
	c, err := trust.Of(request, false)
	if err != nil {
		return err
	}
	c.Image = cfg.ImageID
	return a.writeManifest(&trust.Manifest{Network: cfg.Network.Mode, Containers: []trust.Container{*c}}, o)
}

// writeManifest completes a manifest by what its flags say.
func (a *app) writeManifest(m *trust.Manifest, o *manifestFlags) (err error) {
	m.Format, m.Version, m.Expires = trust.Format, o.version, time.Now().Add(o.valid).UTC().Truncate(time.Second)
	m.Calls = slices.Sorted(slices.Values(o.calls))
	if m.Calls == nil {
		m.Calls = []string{}
	}
	if o.brokerURL != "" || o.brokerKey != "" {
		m.Broker = &trust.Broker{URL: o.brokerURL}
		if m.Broker.Key, err = declare.ReadPublicKey(o.brokerKey); err != nil {
			return err
		}
	}
	for _, s := range o.secrets {
		secret, err := parseSecret(s)
		if err != nil {
			return err
		}
		m.Secrets = append(m.Secrets, secret)
	}
	b, err := m.Encode()
	if err != nil {
		return err
	}
	return a.put(o.output, b)
}

// parseSecret reads NAME=PATH[:MODE].
func parseSecret(s string) (trust.Secret, error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		return trust.Secret{}, fmt.Errorf("invalid secret %q: expected NAME=PATH[:MODE]", s)
	}
	secret := trust.Secret{Name: name, Path: path, Mode: 0o400}
	if path, mode, ok := strings.Cut(path, ":"); ok {
		n, err := strconv.ParseUint(mode, 8, 12)
		if err != nil {
			return trust.Secret{}, fmt.Errorf("invalid secret %q: the mode is octal", s)
		}
		secret.Path, secret.Mode = path, uint32(n)
	}
	return secret, nil
}

// draft is what create would make of flags, image and command, without making it.
func (a *app) draft(ctx context.Context, f *declare.Flags, args []string) (*container.Config, error) {
	host := declare.ThisHost()
	if err := f.Check(host); err != nil {
		return nil, err
	}
	images, err := a.images()
	if err != nil {
		return nil, err
	}
	img, err := a.findImage(ctx, images, args[0], f)
	if err != nil {
		return nil, err
	}
	progress := a.progress(a.err, f.Quiet)
	_, release, err := images.Rootfs(ctx, img, progress.event)
	progress.close()
	if err != nil {
		return nil, err
	}
	release()
	imageConfig, err := declare.ParseImageConfig(img.RawConfig)
	if err != nil {
		return nil, err
	}
	return f.Config(&declare.Image{Reference: args[0], ID: img.ID, Platform: img.Platform.String(), Config: imageConfig}, args[1:], host)
}

func (a *app) signCommand() *cobra.Command {
	var key, output string
	cmd := &cobra.Command{
		Use:     "sign --key FILE [OPTIONS] MANIFEST",
		Short:   "Sign a manifest by its owner's key (DSSE)",
		Example: `  manis trust sign --key owner.key -o m.dsse m.json`,
		Args:    needs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			private, err := readPrivateKey(key)
			if err != nil {
				return err
			}
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			envelope, err := trust.Sign([]byte(strings.TrimSuffix(string(b), "\n")), private)
			if err != nil {
				return err
			}
			return a.put(output, envelope)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "The owner's private key")
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}

func (a *app) measureCommand() *cobra.Command {
	var output, accel, pin string
	var memory uint64
	var cpus float64
	var launch launchFlags
	cmd := &cobra.Command{
		Use:   "measure [OPTIONS]",
		Short: "Compute the reference values of confidential machines from this installation's guest",
		Example: `  manis trust measure -o reference.json
  manis trust measure --snp --ovmf OVMF.amdsev.fd --vcpus 2 --vcpu-type EPYC-Milan --min-tcb 4,0,24,219 -o reference.json`,
		Args: needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			places, err := a.places()
			if err != nil {
				return err
			}
			if !(cpus >= 0 && cpus <= 1024) { // not a number is neither
				return fmt.Errorf("--cpus %g: that is no number of processors", cpus)
			}
			snp, err := launch.read(cmd.Flags())
			if err != nil {
				return err
			}
			vm, cmdline, err := monitor.Measured(cmd.Context(), places, &container.Config{Class: container.Confidential, Accel: accel, Resources: container.Resources{MemoryBytes: memory, MilliCPUs: uint64(cpus * 1000)}})
			if err != nil {
				return err
			}
			r, err := attest.Measure(vm.Kernel, vm.Initrd, vm.Firmware, cmdline, vm.MemoryBytes)
			if err != nil {
				return err
			}
			if err := launch.measure(snp, cmd.Flags(), vm, cmdline); err != nil {
				return err
			}
			r.SNP = snp
			if r.SNP != nil && r.SNP.MinTCB == (attest.SNPVersion{}) {
				fmt.Fprintln(a.err, "sevSnp.minTcb is zero, which takes platforms with known holes: --min-tcb")
			}
			if pin != "" {
				if r.Firmware, err = firmwareOf(pin, r); err != nil {
					return err
				}
			}
			b, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				return err
			}
			return a.put(output, b)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	cmd.Flags().Uint64VarP(&memory, "memory", "m", 0, "The container's memory limit, bytes, as with run (0 is none)")
	cmd.Flags().Float64Var(&cpus, "cpus", 0, "The container's limit of processors, as with run (0 is none)")
	cmd.Flags().StringVar(&accel, "accel", "auto", `How the VM runs ("auto", "kvm", "tcg")`)
	launch.add(cmd.Flags())
	cmd.Flags().StringVar(&pin, "pin-firmware", "", "Take the firmware's value from the audit bundle of a run that is trusted")
	return cmd
}

// brokerFlags are a broker's.
type brokerFlags struct {
	listen, key, log   string
	rules              string
	ledger             ledgerFlags
	owners, references []string
	secrets, forTests  []string
	minVersion         uint64
	productionAnyway   bool
	kbs                bool
}

func (a *app) brokerCommand() *cobra.Command {
	o := new(brokerFlags)
	cmd := &cobra.Command{
		Use:   "broker [OPTIONS]",
		Short: "Serve secrets to machines that prove what they are",
		Example: `  manis trust keygen broker
  manis trust broker --key broker.key --owner owner.pub --reference reference.json --test-secret greeting=greeting.txt --log broker.log`,
		Args: needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serveBroker(cmd.Context(), o) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.listen, "listen", "127.0.0.1:7400", "Address to listen on")
	fs.StringVar(&o.key, "key", "", "The broker's private key")
	fs.StringVar(&o.log, "log", "broker.log", "File of the broker's audit log")
	fs.StringVar(&o.ledger.dir, "ledger", "", "Directory of a ledger that each decision is entered into, signed by the broker's key")
	o.ledger.registerWitness(fs)
	fs.StringArrayVar(&o.owners, "owner", nil, "Public key of an owner whose manifests are trusted")
	fs.StringArrayVar(&o.references, "reference", nil, "Reference values of machines (manis trust measure)")
	fs.StringArrayVar(&o.secrets, "secret", nil, "A production secret (NAME=FILE)")
	fs.StringArrayVar(&o.forTests, "test-secret", nil, "A secret that protects nothing, and may go to machines that no hardware protects (NAME=FILE)")
	fs.StringVar(&o.rules, "policy", "", "File of rules in CEL, all of which have to be true of a machine (NAME: EXPRESSION)")
	fs.Uint64Var(&o.minVersion, "min-version", 0, "Refuse manifests with a lower version")
	fs.BoolVar(&o.productionAnyway, "production-without-hardware", false, "Release production secrets to machines that no hardware protects, too")
	fs.BoolVar(&o.kbs, "kbs", false, "Answer clients of Confidential Containers' key broker (KBS), too, below /kbs/v0")
	return cmd
}

func (a *app) serveBroker(ctx context.Context, o *brokerFlags) error {
	policy := broker.Policy{Secrets: make(map[string]broker.Secret), MinVersion: o.minVersion, ProductionWithoutHardware: o.productionAnyway}
	for _, path := range o.owners {
		der, err := declare.ReadPublicKey(path)
		if err != nil {
			return err
		}
		policy.Owners = append(policy.Owners, der)
	}
	for _, path := range o.references {
		r, err := attest.ReadReference(path)
		if err != nil {
			return err
		}
		policy.References = append(policy.References, *r)
	}
	for _, kind := range []struct {
		values []string
		test   bool
	}{{o.secrets, false}, {o.forTests, true}} {
		for _, s := range kind.values {
			name, path, ok := strings.Cut(s, "=")
			if !ok || policy.Secrets[name].Value != nil {
				return fmt.Errorf("invalid secret %q: expected NAME=FILE, each name once", s)
			}
			value, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("read the secret %s: %w", name, err)
			}
			policy.Secrets[name] = broker.Secret{Value: value, Test: kind.test}
		}
	}
	if o.rules != "" {
		b, err := os.ReadFile(o.rules)
		if err != nil {
			return fmt.Errorf("read the rules: %w", err)
		}
		if policy.Rules, err = a.evidence.Rules(b); err != nil {
			return fmt.Errorf("read the rules %s: %w", o.rules, err)
		}
	}
	key, err := readPrivateKey(o.key)
	if err != nil {
		return err
	}
	log, err := broker.OpenLog(o.log, key)
	if err != nil {
		return err
	}
	defer log.Close()
	if o.ledger.dir != "" {
		l, by, err := o.ledger.open(key)
		if err != nil {
			return err
		}
		defer l.Close()
		if err := log.Enter(l, by); err != nil {
			return err
		}
	} else if o.ledger.witnessURL != "" {
		return errors.New("--witness is for a ledger: --ledger says which")
	}
	b, err := broker.New(policy, key, log)
	if err != nil {
		return err
	}
	if !o.kbs {
		return a.serve(ctx, o.listen, b)
	}
	mux := http.NewServeMux()
	mux.Handle("/", b)
	mux.Handle("/kbs/", a.evidence.KBS(b, key))
	return a.serve(ctx, o.listen, mux)
}

// serve serves HTTP until it is told to stop, and prints where.
func (a *app) serve(ctx context.Context, address string, handler http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	sig, ctx := catch(ctx)
	defer sig.stop()
	server := &http.Server{Handler: handler, ReadTimeout: 30 * time.Second, WriteTimeout: 60 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	fmt.Fprintf(a.out, "http://%s\n", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
