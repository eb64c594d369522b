package launch_test

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"manis/launch"
)

// output runs the program with its standard output on a pipe.
func output(t *testing.T, attr launch.Attr, build func(p *launch.Program, stdout int)) (string, unix.WaitStatus, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := new(launch.Program)
	defer p.Release()
	build(p, int(w.Fd()))
	proc, err := launch.Start(p, attr, nil)
	w.Close()
	if err != nil {
		return "", 0, err
	}
	defer proc.Release()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), proc.Status(), nil
}

func TestStepsRunInOrder(t *testing.T) {
	dir := t.TempDir()
	got, status, err := output(t, launch.Attr{}, func(p *launch.Program, stdout int) {
		p.Mkdir(dir+"/a", 0o755)
		p.Mkdir(dir+"/a", 0o755) // existing is well
		p.CreateFile(dir+"/a/file", 0o644)
		p.WriteFile(dir+"/a/file", "hello")
		p.Chdir(dir + "/a")
		p.Files([]int{-1, stdout, stdout})
		p.Exec([]string{"/nonexistent/sh", "/bin/sh"}, []string{"sh", "-c", `cat file; echo " $X"; ls /proc/self/fd | wc -l; exit 7`}, []string{"X=y", "PATH=/bin:/usr/bin"})
	})
	if err != nil {
		t.Fatal(err)
	}
	// ls has 1, 2 and the directory it reads; with 0 closed, the directory or a pipe takes that number.
	if !strings.HasPrefix(got, "hello y\n") || strings.TrimSpace(strings.Split(got, "\n")[1]) > "4" {
		t.Errorf("output %q", got)
	}
	if status.ExitStatus() != 7 {
		t.Errorf("exit status %d, want 7", status.ExitStatus())
	}
}

func TestErrorNamesTheStep(t *testing.T) {
	for name, c := range map[string]struct {
		build func(p *launch.Program)
		step  string
		errno syscall.Errno
		exec  bool
	}{
		"chdir":     {func(p *launch.Program) { p.Chdir("/nonexistent") }, "change directory to /nonexistent", unix.ENOENT, false},
		"not found": {func(p *launch.Program) { p.Exec([]string{"/nonexistent/a", "/nonexistent/b"}, []string{"a"}, nil) }, "execute /nonexistent/b", unix.ENOENT, true},
		"refused wins over not found": {func(p *launch.Program) {
			p.Exec([]string{"/etc/passwd", "/nonexistent/b"}, []string{"a"}, nil)
		}, "execute /etc/passwd", unix.EACCES, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := output(t, launch.Attr{}, func(p *launch.Program, _ int) { c.build(p) })
			var step *launch.StepError
			if !errors.As(err, &step) || step.Step != c.step || step.Err != c.errno || step.Exec != c.exec {
				t.Errorf("error %v, want %q with %v", err, c.step, c.errno)
			}
		})
	}
}

func TestExecStopsAtAnErrorThatIsFinal(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", []byte("\x7fELF but no more"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, _, err := output(t, launch.Attr{}, func(p *launch.Program, _ int) {
		p.Exec([]string{"/nonexistent/a", dir + "/a", "/bin/true"}, []string{"a"}, nil)
	})
	if !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("error %v, want exec format error", err)
	}
}

func TestCloseOthersLeavesOnlyTheReport(t *testing.T) {
	for name, exec := range map[string]string{
		"works": "/bin/sh",
		// The error still arrives after the report's descriptor has moved.
		"fails": "/nonexistent/sh",
	} {
		t.Run(name, func(t *testing.T) {
			secret, err := os.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			defer secret.Close()
			got, _, err := output(t, launch.Attr{}, func(p *launch.Program, stdout int) {
				p.Umask(0o27)
				p.Files([]int{-1, stdout, stdout})
				p.CloseOthers(3)
				// The directory could be entered by its number if it were open.
				for fd := 4; fd < 64; fd++ {
					p.Try(unix.SYS_FCHDIR, fd)
				}
				p.Exec([]string{exec}, []string{"sh", "-c", "pwd; umask; ls -l /proc/self/fd | grep -c pipe"}, []string{"PATH=/bin:/usr/bin"})
			})
			if name == "fails" {
				if !errors.Is(err, unix.ENOENT) {
					t.Errorf("error %v, want not found", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(got, "\n")
			if wd, _ := os.Getwd(); lines[0] != wd || lines[1] != "0027" {
				t.Errorf("output %q, want the working directory and umask kept", got)
			}
		})
	}
}

func TestExecFileNeedsNoName(t *testing.T) {
	sh, err := os.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	got, _, err := output(t, launch.Attr{}, func(p *launch.Program, stdout int) {
		p.Files([]int{-1, stdout, stdout})
		p.ExecFile(int(sh.Fd()), []string{"other", "-c", "echo $0"}, nil)
	})
	if err != nil || got != "other\n" {
		t.Errorf("output %q, error %v", got, err)
	}
}

func TestUserNamespaceWithOwnRoot(t *testing.T) {
	dir := t.TempDir()
	got, _, err := output(t, launch.Attr{Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID}, func(p *launch.Program, stdout int) {
		p.WriteFile("/proc/self/setgroups", "deny")
		p.WriteFile("/proc/self/uid_map", "0 "+itoa(os.Getuid())+" 1")
		p.WriteFile("/proc/self/gid_map", "0 "+itoa(os.Getgid())+" 1")
		p.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		p.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m")
		for _, d := range []string{"bin", "lib", "lib64", "usr"} {
			if _, err := os.Stat("/" + d); err != nil {
				continue
			}
			p.Mkdir(dir+"/"+d, 0o755)
			p.Mount("/"+d, dir+"/"+d, "", unix.MS_BIND|unix.MS_REC, "")
		}
		p.PivotRoot(dir)
		p.Files([]int{-1, stdout, stdout})
		p.NoNewPrivileges()
		p.BoundCapabilities(0, 40)
		p.Capabilities(0, 0, 0, 0)
		p.DieWithParent()
		p.Exec([]string{"/bin/sh"}, []string{"sh", "-c", "echo $$ *; test -w / && echo writable"}, []string{"PATH=/bin"})
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got, "1 bin lib") || strings.Contains(got, "proc") {
		t.Errorf("output %q, want PID 1 in a root of its own", got)
	}
}

func TestManyFiles(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := output(t, launch.Attr{}, func(p *launch.Program, _ int) {
		for i := range 1000 {
			p.CreateFile(dir+"/"+itoa(i), 0o644)
		}
		p.Exec([]string{"/bin/true"}, []string{"true"}, nil)
	}); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1000 {
		t.Errorf("%d files, %v; want 1000", len(list), err)
	}
}

func TestMeet(t *testing.T) {
	var met []int
	note := func(pid int) error {
		met = append(met, pid)
		return nil
	}
	got, _, err := output(t, launch.Attr{}, func(p *launch.Program, stdout int) {
		p.Meet("first", note)
		p.Files([]int{-1, stdout, stdout})
		p.Meet("second", note)
		p.Exec([]string{"/bin/sh"}, []string{"sh", "-c", "echo $$"}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(got))
	if len(met) != 2 || met[0] != pid || met[1] != pid {
		t.Errorf("the parent met %v, want process %d twice", met, pid)
	}
}

func TestMeetRefused(t *testing.T) {
	no := errors.New("no")
	dir := t.TempDir()
	_, _, err := output(t, launch.Attr{}, func(p *launch.Program, _ int) {
		p.Meet("ask parent", func(int) error { return no })
		p.Mkdir(dir+"/after", 0o755)
		p.Exec([]string{"/bin/true"}, []string{"true"}, nil)
	})
	if !errors.Is(err, no) || !strings.HasPrefix(err.Error(), "ask parent: ") {
		t.Errorf("error %v, want the parent's", err)
	}
	if _, err := os.Stat(dir + "/after"); err == nil {
		t.Error("the child went on after the parent refused")
	}
}

func itoa(n int) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}
