package declare

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/pflag"
)

// Flags are the flags that run and create share.
type Flags struct {
	Name     string
	Platform string
	Pull     string // always, missing, never
	Quiet    bool
	Insecure bool // pull over plain HTTP
	CIDFile  string
	Attach   List // stdin, stdout, stderr
	TTY      bool
	Stdin    bool
	Remove   bool
	Trace    TraceForm
	// StdinOnce is not a flag: the container's stdin ends with the first
	// attachment, as run has one.
	StdinOnce bool

	env, envFiles      List
	user, workdir      string
	entrypoint         optional[string]
	groups             List
	umask              optional[uint32]
	init               bool
	labels, labelFiles List

	hostname, domainname          string
	publish, expose               List
	publishAll                    bool
	network                       string
	addHosts, dns, dnsSearch      List
	dnsOption                     List
	mac                           string
	allowLoopback, allowLinkLocal bool
	egress                        List

	volumes, mounts, tmpfs, volumesFrom List
	readOnly                            bool
	shm                                 bytesValue
	storageOpt                          List

	memory, reservation bytesValue
	swap                swapValue
	cpus                cpusValue
	cpuShares           uint64
	cpuPeriod, cpuQuota int64
	cpuset              string
	pids                int64
	ulimits             List
	devices             List
	sysctls             List
	oomScore            int

	privileged   bool
	capAdd       List
	capDrop      List
	security     List
	userns       string
	pidMode      string
	ipcMode      string
	utsMode      string
	cgroupns     string
	cgroupParent string
	runtime      string
	gpus         string

	stopSignal  string
	stopTimeout optional[int]
	restart     string
	noHealth    bool
	health      healthFlags
	logDriver   string
	logOpt      List
	accel       string
	boot        string

	class, manifest, owner, broker, bundle string
	// Drafting: the container is not to run: a manifest is made of what would.
	Drafting bool
}

type healthFlags struct {
	cmd                                           optional[string]
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
}

// Register adds the flags to a command's.
func (f *Flags) Register(fs *pflag.FlagSet) {
	text := func(s string) (string, error) { return s, nil }

	fs.VarP(&f.Attach, "attach", "a", "Attach to STDIN, STDOUT or STDERR")
	fs.StringVar(&f.CIDFile, "cidfile", "", "Write the container ID to the file")
	fs.BoolVarP(&f.Stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.StringVar(&f.Name, "name", "", "Assign a name to the container")
	fs.StringVar(&f.Platform, "platform", "", "Set platform if the image is multi-platform (os/arch[/variant])")
	fs.StringVar(&f.Pull, "pull", "missing", `Pull image before running ("always", "missing", "never")`)
	fs.BoolVar(&f.Insecure, "insecure", false, "Allow plain HTTP and unknown certificates when pulling")
	fs.BoolVarP(&f.Quiet, "quiet", "q", false, "Suppress the pull output")
	fs.BoolVar(&f.Remove, "rm", false, "Remove the container and its anonymous volumes when it ends")
	fs.BoolVarP(&f.TTY, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.Var(&f.Trace, "trace", `Show how the start-up spent its time ("waterfall", "json")`)
	fs.Lookup("trace").NoOptDefVal = string(TraceWaterfall)

	fs.VarP(&f.env, "env", "e", "Set environment variables")
	fs.Var(&f.envFiles, "env-file", "Read in a file of environment variables")
	f.entrypoint = optional[string]{parse: text, kind: "string"}
	fs.Var(&f.entrypoint, "entrypoint", "Overwrite the default ENTRYPOINT of the image")
	fs.StringVarP(&f.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
	fs.Var(&f.groups, "group-add", "Add additional groups to join")
	f.umask = optional[uint32]{kind: "octal", parse: parseUmask}
	fs.Var(&f.umask, "umask", "Set the umask of the processes")
	fs.BoolVar(&f.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	fs.VarP(&f.labels, "label", "l", "Set meta data on a container")
	fs.Var(&f.labelFiles, "label-file", "Read in a line delimited file of labels")

	fs.StringVarP(&f.hostname, "hostname", "h", "", "Container host name")
	fs.StringVar(&f.domainname, "domainname", "", "Container NIS domain name")
	fs.VarP(checkedList{list: &f.publish, check: checkPublish}, "publish", "p", "Publish a container's port(s) to the host")
	fs.BoolVarP(&f.publishAll, "publish-all", "P", false, "Publish all exposed ports to random ports")
	fs.Var(checkedList{list: &f.expose, check: checkExpose}, "expose", "Expose a port or a range of ports")
	fs.StringVar(&f.network, "network", "user", `Connect the container to a network ("user", "none")`)
	fs.StringVar(&f.network, "net", "user", "Connect the container to a network")
	fs.MarkHidden("net")
	fs.Var(checkedList{list: &f.addHosts, check: checkAddHost}, "add-host", "Add a custom host-to-IP mapping (host:ip)")
	fs.Var(checkedList{list: &f.dns, check: checkDNS}, "dns", "Set custom DNS servers")
	fs.Var(&f.dnsSearch, "dns-search", "Set custom DNS search domains")
	fs.Var(&f.dnsOption, "dns-option", "Set DNS options")
	fs.Var(&f.dnsOption, "dns-opt", "Set DNS options")
	fs.MarkHidden("dns-opt")
	fs.StringVar(&f.mac, "mac-address", "", "Container MAC address (e.g., 02:42:00:00:00:02)")
	fs.BoolVar(&f.allowLoopback, "allow-host-loopback", false, "Let the container reach the host's loopback, at the name host.docker.internal")
	fs.BoolVar(&f.allowLinkLocal, "allow-link-local", false, "Let the container reach link-local and cloud metadata addresses")

	fs.Var(checkedList{list: &f.egress, check: checkEgress}, "egress", `Connect to nothing but this: DESTINATION[,PROTOCOL[/PORT[-PORT]]]..., with an address, a network, a name, "any" or "none"`)

	fs.VarP(&f.volumes, "volume", "v", "Bind mount a volume")
	fs.Var(&f.mounts, "mount", "Attach a filesystem mount to the container")
	fs.Var(&f.tmpfs, "tmpfs", "Mount a tmpfs directory")
	fs.Var(&f.volumesFrom, "volumes-from", "Mount volumes from the specified container(s)")
	fs.BoolVar(&f.readOnly, "read-only", false, "Mount the container's root filesystem as read only")
	fs.Var(&f.shm, "shm-size", "Size of /dev/shm")
	fs.Var(checkedList{list: &f.storageOpt, check: checkStorageOpt}, "storage-opt", `Options of the writable layer ("size=SIZE", "type=disk|memory")`)

	fs.VarP(&f.memory, "memory", "m", "Memory limit")
	fs.Var(&f.swap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	fs.Var(&f.reservation, "memory-reservation", "Memory soft limit")
	fs.Var(&f.cpus, "cpus", "Number of CPUs")
	fs.Uint64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fs.StringVar(&f.cpuset, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fs.Int64Var(&f.pids, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	fs.Var(checkedList{list: &f.ulimits, check: checkUlimit, kind: "ulimit"}, "ulimit", "Ulimit options")
	fs.Var(checkedList{list: &f.devices, check: checkDevice}, "device", "Add a device of the VM to the container")
	fs.Var(checkedList{list: &f.sysctls, check: checkSysctl, kind: "map"}, "sysctl", "Sysctl options")
	fs.IntVar(&f.oomScore, "oom-score-adj", 0, "Tune the OOM preferences inside the VM (-1000 to 1000)")

	fs.BoolVar(&f.privileged, "privileged", false, "Give extended privileges, inside the VM, to this container")
	fs.Var(checkedList{list: &f.capAdd, check: checkCapability}, "cap-add", "Add Linux capabilities")
	fs.Var(checkedList{list: &f.capDrop, check: checkCapability}, "cap-drop", "Drop Linux capabilities")
	fs.Var(&f.security, "security-opt", "Security Options")

	fs.StringVar(&f.stopSignal, "stop-signal", "", "Signal to stop the container")
	f.stopTimeout = optional[int]{kind: "int", parse: strconv.Atoi}
	fs.Var(&f.stopTimeout, "stop-timeout", "Timeout (in seconds) to stop a container")
	fs.StringVar(&f.restart, "restart", "no", "Restart policy to apply when a container exits")
	fs.BoolVar(&f.noHealth, "no-healthcheck", false, "Disable any container-specified HEALTHCHECK")
	f.health.cmd = optional[string]{parse: text, kind: "string"}
	fs.Var(&f.health.cmd, "health-cmd", "Command to run to check health")
	fs.DurationVar(&f.health.interval, "health-interval", 0, "Time between running the check (ms|s|m|h) (default 30s)")
	fs.IntVar(&f.health.retries, "health-retries", 0, "Consecutive failures needed to report unhealthy")
	fs.DurationVar(&f.health.startInterval, "health-start-interval", 0, "Time between running the check during the start period (ms|s|m|h) (default 5s)")
	fs.DurationVar(&f.health.startPeriod, "health-start-period", 0, "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h) (default 0s)")
	fs.DurationVar(&f.health.timeout, "health-timeout", 0, "Maximum time to allow one check to run (ms|s|m|h) (default 30s)")
	fs.StringVar(&f.logDriver, "log-driver", "json-file", `Logging driver for the container ("json-file", "none")`)
	fs.Var(&f.logOpt, "log-opt", `Log driver options ("max-size=SIZE", "max-file=N")`)
	fs.StringVar(&f.accel, "accel", "auto", `How the VM runs ("auto", "kvm", "tcg")`)
	fs.StringVar(&f.boot, "boot", "auto", `Where the VM comes from ("auto", "template", "cold")`)

	fs.StringVar(&f.class, "class", "", `Whom the container has to trust ("standard", "confidential")`)
	if !f.Drafting {
		fs.StringVar(&f.manifest, "manifest", "", "Signed manifest of a confidential container")
		fs.StringVar(&f.owner, "owner-key", "", "Public key of the one who has signed the manifest")
		fs.StringVar(&f.broker, "broker", "", "Where to find the manifest's broker, if not where the manifest says (URL)")
		fs.StringVar(&f.bundle, "audit-bundle", "", "Also write the confidential container's audit bundle to a file, which --rm leaves")
	}

	// Docker's flags about sharing with the host. They are known, so that what
	// is wrong with them can be said.
	for _, hidden := range []struct {
		value *string
		name  string
	}{
		{&f.userns, "userns"}, {&f.pidMode, "pid"}, {&f.ipcMode, "ipc"}, {&f.utsMode, "uts"},
		{&f.cgroupns, "cgroupns"}, {&f.cgroupParent, "cgroup-parent"}, {&f.runtime, "runtime"}, {&f.gpus, "gpus"},
	} {
		fs.StringVar(hidden.value, hidden.name, "", "")
		fs.MarkHidden(hidden.name)
	}
}

// sharing refuses what would give the container a part of the host.
func (f *Flags) sharing() error {
	for _, s := range []struct{ name, value, accept string }{
		{"userns", f.userns, ""}, {"pid", f.pidMode, "private"}, {"ipc", f.ipcMode, "private"},
		{"uts", f.utsMode, "private"}, {"cgroupns", f.cgroupns, "private"},
	} {
		if s.value != "" && s.value != s.accept && !(s.name == "ipc" && s.value == "shareable") {
			return fmt.Errorf("--%s=%s: a container has a virtual machine, and with it all namespaces, to itself", s.name, s.value)
		}
	}
	if f.gpus != "" {
		return fmt.Errorf("--gpus=%s: GPUs cannot be given to a container yet", f.gpus)
	}
	if f.cgroupParent != "" {
		return fmt.Errorf("--cgroup-parent=%s: the container's cgroup is inside its virtual machine", f.cgroupParent)
	}
	if f.runtime != "" && f.runtime != "manis" {
		return fmt.Errorf("unknown or invalid runtime name: %s (there is only manis)", f.runtime)
	}
	return nil
}

func parseUmask(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 {
		return 0, fmt.Errorf("%q is no umask (octal, at most 0777)", s)
	}
	return uint32(n), nil
}
