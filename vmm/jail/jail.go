package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"manis/cgroup"
	"manis/launch"
	"manis/origin"
)

// ErrUnsupported: the host does not permit the jail. The message says what to do.
var ErrUnsupported = errors.New("this host does not permit the jail")

// SharesDir is where shares appear inside the jail.
const SharesDir = "/shares"

// LibraryDir is where shared libraries appear inside the jail.
const LibraryDir = "/lib"

// Config is what a jailed process is given.
type Config struct {
	// Closure is the program with all that the loader needs. Nil: Program is one.
	Closure *Closure
	// Program is the path, inside the jail, of a static program among Files.
	Program string
	// Args follow the program's name.
	Args []string
	// Files are read-only files besides the closure.
	Files []File
	// Shares appear below SharesDir.
	Shares []Share
	// Descriptors become 0, 1, 2, ... of the process; nil leaves one closed. They
	// remain the caller's.
	Descriptors []*os.File
	// Dir is an existing directory that may serve as mount point; nothing is written to it.
	Dir string
	// KVM gives access to /dev/kvm.
	KVM bool
	// Name is the sandbox's, and unique: where the search begins for a user of the host's that no other jail has. It is of no
	// meaning for ordinary users, whose jails are theirs, and with Shares of others' files, which root's jail serves as user 0.
	Name string
	// Calls are the system calls that the program may make. Nil: all but those that no jailed program may make.
	Calls *Calls
	// Group is the control group of the process. A host that does not permit it
	// is no error; Verify tells.
	Group cgroup.Config
	// Open leaves out the jail: the process sees the host as its starter does, but
	// still gains no privilege and dies with its parent. Files and Shares are not for
	// it.
	Open bool
}

// File is a host file that the jail shows, for reading only unless Writable is set.
type File struct {
	Host, Inside string
	Writable     bool
	// Checked is the file as the caller has opened it to check its content: the jail shows it and no other
	// that has come to its path since. Nil: whatever is there.
	Checked *os.File
	// Lent lets the process open the file as if it could write to it, to map it
	// privately, until StopLending.
	Lent bool
}

// Share is a directory inside the jail that holds host directories and files.
type Share struct {
	Name    string
	Entries []Entry
	// Grows: entries may be added while the process runs, writable ones too.
	Grows bool
}

// Entry is one host directory or file of a Share.
type Entry struct {
	Name, Host     string
	ReadOnly, File bool
	// Opened is the host's directory or file as its caller has opened it to decide on it: the jail shows it and no other that has come to
	// its path since. Nil: whatever is there.
	Opened *os.File
	// Own is a directory made for the process alone, which is given to its user, whoever that is.
	Own bool
	// WritableBelow: ReadOnly is for Host's own mount, those below it stay what they are.
	WritableBelow bool
	// Follows: mounts that are made or taken away below Host later are so here, too. Only entries that Add adds do.
	Follows bool
	// IDs maps owners; nil: they are what they are. Only for entries that Add adds.
	IDs *IDMap
}

// mayWrite reports whether something of it may be written to: its own mount, or any.
func (e *Entry) mayWrite(own bool) bool { return !e.ReadOnly || !own && e.WritableBelow }

// namespaces are those that every jail has of its own. The user namespace is
// entered at another moment by root.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// environment is all that the process gets of one: the libraries lie in one
// directory, whatever the host's layout.
var environment = []string{"LD_LIBRARY_PATH=" + LibraryDir}

// Process is a jailed process.
type Process struct {
	*launch.Process
	identity identity
	claim    *claim // nil: it has a user that others may have
	open     bool
	// entries are the names in the root directory.
	entries []string
	// shown are the entries and writable files by their mount points.
	mu        sync.Mutex
	shown     map[string]Entry
	group     *cgroup.Group
	groupless string   // why there is no group
	answers   *answers // nil: no call is answered
	// filters is the number of seccomp filters that it has from the beginning, calls what they allow.
	filters int
	calls   *Calls
	// fenced is what Landlock is asked for, fenceless why nothing is.
	fenced, fenceless string
}

// Start starts the process and returns when it executes the program.
func Start(c Config) (_ *Process, err error) {
	j := &Process{identity: identify(&c), open: c.Open}
	if g, err := cgroup.Make(c.Group); err == nil {
		j.group = g
	} else {
		j.groupless = err.Error()
	}
	defer func() {
		if err != nil && j.group != nil {
			j.group.Remove()
		}
	}()
	if err := j.become(&c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			j.claim.release()
		}
	}()
	id := j.identity
	lender := newLender(c.Files)
	var special *special
	if slices.ContainsFunc(c.Shares, Share.foreign) {
		special = newSpecial(id)
	}
	if !c.Open && (lender != nil || special != nil) {
		if j.answers, err = newAnswers(lender, special); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				j.answers.end()
			}
		}()
	}
	p := new(launch.Program)
	defer p.Release()
	attr := launch.Attr{}

	// The write that follows DieWithParent finds the parent alive only while
	// it holds the reading end.
	var alive [2]int
	if err := unix.Pipe2(alive[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(alive[0])
	defer unix.Close(alive[1])

	if j.group != nil {
		p.Meet("join control group", func(pid int) error {
			// A group may be makeable but not joinable, when the common parent
			// of the old one and the new one is not ours (cgroup v2).
			if err := j.group.Join(pid); err != nil {
				j.groupless = err.Error()
			}
			return nil
		})
	}
	if !c.Open {
		attr.Namespaces = namespaces
		if !id.root {
			attr.Namespaces |= unix.CLONE_NEWUSER
			id.mapSelf(p)
		}
		p.Umask(0o022)
		p.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err := j.furnish(p, &c); err != nil {
			return nil, err
		}
		p.PivotRoot(".")
		if list := c.checked(); list != nil {
			p.Meet("check files", func(pid int) error { return compare(pid, list) })
		}
		p.Call("name host", unix.SYS_SETHOSTNAME, "vm", 2)
		p.Call("name domain", unix.SYS_SETDOMAINNAME, "", 0)
		if id.root {
			id.enter(p)
		}
		p.BoundCapabilities(id.caps, lastCapability())
		p.KeepCapabilities()
		p.User(id.uid, id.gid)
		p.Capabilities(id.caps, id.caps, id.caps, id.caps)
	}
	setLimits(p)
	p.NoNewPrivileges()
	p.Setsid()
	p.DieWithParent()
	p.Call("close", unix.SYS_CLOSE, alive[0])
	p.Call("find the parent", unix.SYS_WRITE, alive[1], []byte{0}, 1)
	fds := make([]int, len(c.Descriptors))
	for i, f := range c.Descriptors {
		fds[i] = -1
		if f != nil {
			fds[i] = int(f.Fd())
		}
	}
	p.Files(fds)
	program := c.Program
	if c.Closure != nil {
		program = c.Closure.Program
	}
	env := []string(nil)
	if !c.Open {
		j.fence(p, &c, program)
		if j.answers != nil {
			f, err := j.answers.filter()
			if err != nil {
				return nil, err
			}
			p.SeccompNotify(f, j.answers.sock[1])
		}
		list, err := filters(c.Calls)
		if err != nil {
			return nil, err
		}
		for _, f := range list {
			p.Seccomp(f.Program, f.Flags)
		}
		j.filters, j.calls = len(list), c.Calls
		if j.answers != nil {
			j.filters++
		}
		env = environment
	}
	p.Exec([]string{program}, append([]string{program}, c.Args...), env)

	if beforeMounts != nil {
		beforeMounts()
	}
	if j.Process, err = launch.Start(p, attr, nil); err != nil {
		return nil, explain(err)
	}
	if j.group != nil && j.groupless != "" {
		j.group.Remove()
		j.group = nil
	}
	if j.answers != nil {
		if err := j.answers.begin(); err != nil {
			j.Signal(unix.SIGKILL)
			j.Process.Release()
			return nil, err
		}
	}
	return j, nil
}

// beforeMounts is for tests of what others do to paths in between; nil: nothing.
var beforeMounts func()

// StopLending lends no file any more: the process has what it needs.
func (j *Process) StopLending() {
	switch a := j.answers; {
	case a == nil:
	case a.special == nil:
		a.end()
	case a.lender != nil:
		a.lender.over.Store(true)
	}
}

// Release frees what belongs to the process, which must have ended.
func (j *Process) Release() error {
	j.Process.Release()
	j.claim.release()
	if j.answers != nil {
		j.answers.end()
	}
	if j.group == nil {
		return nil
	}
	g := j.group
	j.group, j.groupless = nil, "removed"
	return g.Remove()
}

// become claims a user where the process gets one of its own, and gives it what is to be its own.
func (j *Process) become(c *Config) error {
	id := &j.identity
	if !id.root || id.every || c.Open {
		return nil
	}
	var err error
	if j.claim, err = claimUser(c.Name); err != nil {
		return err
	}
	id.uid, id.gid = j.claim.uid, j.claim.uid
	for _, s := range c.Shares {
		for _, e := range s.Entries {
			if err := os.Lchown(e.Host, int(id.uid), int(id.gid)); err != nil {
				j.claim.release()
				return err
			}
		}
	}
	return nil
}

// furnish builds the root: a tmpfs mounted over Dir, which becomes the working
// directory, with a bind mount for every file. Then all of it is made
// read-only, and the shares are mounted into it, which must stay as they are.
func (j *Process) furnish(p *launch.Program, c *Config) error {
	id := j.identity
	p.Mount("tmpfs", c.Dir, "tmpfs", unix.MS_NOSUID, "mode=0755,size=1m,nr_inodes=4k")
	p.Chdir(c.Dir)
	r := room{p: p, dirs: map[string]bool{".": true}}
	if c.Closure != nil {
		r.closure(c.Closure)
	}
	for _, f := range c.Files {
		if f.Writable {
			r.place(f.Inside) // mounted when all else is read-only
			continue
		}
		r.file(f.Host, f.Inside)
	}
	for _, s := range c.Shares {
		dir := filepath.Join(SharesDir, s.Name)
		r.mkdir(dir)
		for _, e := range s.Entries {
			if e.File {
				r.mkdir(filepath.Dir(filepath.Join(dir, e.Name)))
				p.CreateFile(r.relative(filepath.Join(dir, e.Name)), 0o444)
			} else {
				r.mkdir(filepath.Join(dir, e.Name))
			}
		}
	}
	if slices.ContainsFunc(c.Shares, Share.foreign) {
		// A 9p server reaches extended attributes through /proc/self/fd. Its
		// own PID namespace shows it nobody but itself.
		r.mkdir("/proc")
		p.Mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "subset=pid,hidepid=2")
	}
	if c.KVM {
		id.device(p, &r)
	}
	setattr(p, ".", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if c.KVM {
		id.bindDevice(p)
	}
	j.entries, j.shown = r.top(), map[string]Entry{}
	for _, f := range c.Files {
		if f.Writable {
			target := r.relative(f.Inside)
			j.shown[f.Inside] = Entry{}
			p.Mount(f.Host, target, "", unix.MS_BIND, "")
			setattr(p, target, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		}
	}
	for _, s := range c.Shares {
		for _, e := range s.Entries {
			inside := filepath.Join(SharesDir, s.Name, e.Name)
			target := r.relative(inside)
			if e.Opened == nil {
				p.Mount(e.Host, target, "", unix.MS_BIND|unix.MS_REC, "")
			} else if err := bindOpened(p, &e, target); err != nil {
				return err
			}
			e.Opened = nil // the caller's
			j.shown[inside] = e
			all, own := e.flags()
			setattr(p, target, all)
			if own != 0 {
				setOwn(p, target, own)
			}
		}
	}
	return nil
}

// bindOpened mounts an entry that was opened. The copy of a mount has to be made in the process's own mount namespace, where the descriptor
// is of no use: so by path, in which nobody can have put a link. That it is the same file is compared before anything runs.
func bindOpened(p *launch.Program, e *Entry, target string) error {
	is, err := origin.Of(e.Opened)
	if err != nil {
		return fmt.Errorf("show %s in the jail: %w", e.Host, err)
	}
	place := p.OpenLinkless(is.Path)
	tree := p.OpenTreeOf("copy the mount of "+is.Path, place, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
	p.Call("mount "+e.Host, unix.SYS_MOVE_MOUNT, tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.Close(tree)
	p.Close(place)
	return nil
}

// check is a path inside the jail with the file that has to be there.
type check struct {
	host, inside string
	want         *os.File
}

// checked are the files that their caller has opened before.
func (c *Config) checked() []check {
	var list []check
	for _, f := range c.Files {
		if f.Checked != nil {
			list = append(list, check{f.Host, f.Inside, f.Checked})
		}
	}
	for _, s := range c.Shares {
		for _, e := range s.Entries {
			if e.Opened != nil {
				list = append(list, check{e.Host, filepath.Join(SharesDir, s.Name, e.Name), e.Opened})
			}
		}
	}
	return list
}

// compare compares what the jail shows with what was opened.
func compare(pid int, list []check) error {
	for _, c := range list {
		want, err := c.want.Stat()
		if err != nil {
			return err
		}
		got, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", pid, c.inside))
		if err != nil {
			return err
		}
		if !os.SameFile(want, got) {
			return fmt.Errorf("%s is not the file that was checked: %w", c.host, origin.ErrChanged)
		}
	}
	return nil
}

// setattr sets flags on the mount at path and all below it. It only ever
// adds flags, so those that a user namespace must keep are kept.
func setattr(p *launch.Program, path string, flags uint64) {
	setMount(p, path, unix.AT_RECURSIVE, flags)
}

// setOwn sets them on the mount at path alone.
func setOwn(p *launch.Program, path string, flags uint64) { setMount(p, path, 0, flags) }

// flags are those of an entry's mounts: of all, and of its own besides.
func (e *Entry) flags() (all, own uint64) {
	all = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	switch {
	case e.ReadOnly && e.WritableBelow:
		own = unix.MOUNT_ATTR_RDONLY
	case e.ReadOnly:
		all |= unix.MOUNT_ATTR_RDONLY
	}
	return all, own
}

func setMount(p *launch.Program, path string, which int, flags uint64) {
	attr := make([]byte, 32) // struct mount_attr: set, clear, propagation, userns_fd
	for i := range 8 {
		attr[i] = byte(flags >> (8 * i))
	}
	p.Call("protect "+path, unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, path, which, attr, len(attr))
}

// room adds files to the root that is the working directory.
type room struct {
	p    *launch.Program
	dirs map[string]bool
	// files are those in the root itself.
	files []string
}

// closure adds a program and what its loader needs.
func (r *room) closure(c *Closure) {
	if c.Interpreter != "" {
		r.file(c.Interpreter, c.Interpreter)
		for _, name := range sortedKeys(c.Libraries) {
			r.file(c.Libraries[name], filepath.Join(LibraryDir, name))
		}
		for _, path := range c.Loads {
			r.file(path, path)
		}
	}
	r.file(c.Program, c.Program)
}

func (r *room) relative(path string) string { return "." + filepath.Clean("/"+path) }

func (r *room) mkdir(path string) {
	path = strings.TrimPrefix(filepath.Clean("/"+path), "/")
	for i, c := range path + "/" {
		if c == '/' && path[:i] != "" && !r.dirs[path[:i]] {
			r.dirs[path[:i]] = true
			r.p.Mkdir(path[:i], 0o755)
		}
	}
}

// top lists the entries of the root; files are put into directories only, but
// for those at the top.
func (r *room) top() []string {
	var names []string
	for path := range r.dirs {
		if path != "." && !strings.Contains(path, "/") {
			names = append(names, path)
		}
	}
	return append(names, r.files...)
}

func (r *room) file(host, inside string) {
	r.p.Mount(host, r.place(inside), "", unix.MS_BIND, "")
}

// place makes a mount point for a file.
func (r *room) place(inside string) string {
	r.mkdir(filepath.Dir(inside))
	if filepath.Dir(inside) == "/" {
		r.files = append(r.files, filepath.Base(inside))
	}
	target := r.relative(inside)
	r.p.CreateFile(target, 0o444)
	return target
}

// foreign reports whether a share holds files of others, or may come to.
func (s Share) foreign() bool {
	return s.Grows || slices.ContainsFunc(s.Entries, func(e Entry) bool { return !e.Own })
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// explain turns the failure of a step into what its reader can do about it.
func explain(err error) error {
	var step *launch.StepError
	switch {
	case !errors.As(err, &step) && (errors.Is(err, unix.EUSERS) || errors.Is(err, unix.ENOSPC)):
		return fmt.Errorf("%w: no further user namespace is allowed (raise /proc/sys/user/max_user_namespaces): %w", ErrUnsupported, err)
	case !errors.As(err, &step) && errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: user namespaces are switched off for ordinary users "+
			"(sysctl kernel.unprivileged_userns_clone=1, or run as root; inside a container its seccomp profile must allow clone3): %w", ErrUnsupported, err)
	case errors.As(err, &step) && step.Step == "mount proc" && errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: shares need a /proc of the jail's own, which is refused where parts of the surrounding one are hidden, "+
			"as in most containers (run that container with an unmasked /proc): %w", ErrUnsupported, err)
	case errors.As(err, &step) && errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%w: %w", origin.ErrChanged, err)
	case errors.As(err, &step) && errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: it needs Linux 5.12 or newer: %w", ErrUnsupported, err)
	case errors.As(err, &step) && !step.Exec && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)):
		return fmt.Errorf("%w: %w (a security module may restrict user namespaces: on Ubuntu see kernel.apparmor_restrict_unprivileged_userns)", ErrUnsupported, err)
	}
	return err
}
