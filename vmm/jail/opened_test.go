package jail_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"manis/origin"
	"manis/vmm/jail"
)

// scene is a directory that was opened to be decided on, beside a secret one.
type scene struct {
	dir    string
	opened *os.File
}

// newScene opens up/given, in which there is a file with that name, by a symbolic link.
func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{dir: t.TempDir()}
	for _, name := range []string{"up/given", "secret"} {
		dir := filepath.Join(s.dir, name)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "content"), []byte(filepath.Base(name)), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("up/given", filepath.Join(s.dir, "link")); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.opened, err = origin.Open(filepath.Join(s.dir, "link")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.opened.Close() })
	return s
}

// entry is what a jail is to show.
func (s *scene) entry(name string) jail.Entry {
	return jail.Entry{Name: name, Host: filepath.Join(s.dir, "link"), Opened: s.opened}
}

// share gives a jail the entry.
func (s *scene) share(c *jail.Config) {
	c.Shares = []jail.Share{{Name: "s", Entries: []jail.Entry{s.entry("a")}}}
}

// swaps put the secret directory where the given one was.
var swaps = map[string]func(dir string) error{
	"a directory": func(dir string) error {
		return errors.Join(os.Rename(dir+"/up/given", dir+"/old"), os.Rename(dir+"/secret", dir+"/up/given"))
	},
	"a link": func(dir string) error {
		return errors.Join(os.Rename(dir+"/up/given", dir+"/old"), os.Symlink(dir+"/secret", dir+"/up/given"))
	},
	"a link further up": func(dir string) error {
		return errors.Join(os.Rename(dir+"/secret", dir+"/given"), os.Rename(dir+"/up", dir+"/old"), os.Symlink(".", dir+"/up"))
	},
	"the link that was given": func(dir string) error {
		return errors.Join(os.Remove(dir+"/link"), os.Symlink("secret", dir+"/link"))
	},
}

// shows reads what an entry of a jail's share holds.
func shows(p *jail.Process, name string) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s/s/%s/content", p.PID, jail.SharesDir, name))
	return string(b), err
}

// A jail shows what was opened, whatever has come to its path since.
func TestOpenedEntry(t *testing.T) {
	for name, swap := range swaps {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			if err := swap(s.dir); err != nil {
				t.Fatal(err)
			}
			p := waiting(t, s.share)
			if got, err := shows(p, "a"); got != "given" {
				t.Errorf("it shows %q, %v", got, err)
			}
			if _, err := p.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What comes to its path between the last look at it and the mount is not shown: there is no process then.
func TestOpenedEntryIsCompared(t *testing.T) {
	program, err := jail.FindClosure("/bin/true", nil)
	if err != nil {
		t.Skip(err)
	}
	for name, swap := range swaps {
		if name == "the link that was given" {
			continue // nobody looks at it any more
		}
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			defer jail.BeforeMounts(func() {
				if err := swap(s.dir); err != nil {
					t.Error(err)
				}
			})()
			c := jail.Config{Closure: program, Dir: t.TempDir(), Name: t.Name()}
			s.share(&c)
			p, err := jail.Start(c)
			if err == nil {
				p.Status()
				p.Release()
				t.Fatal("it started with another directory")
			}
			if os.Geteuid() != 0 && errors.Is(err, jail.ErrUnsupported) {
				t.Skip("this host has no user namespaces for ordinary users: ", err)
			}
			if !errors.Is(err, origin.ErrChanged) {
				t.Errorf("refused for another reason: %v", err)
			}
		})
	}
}

// A process that runs is shown what was opened, too.
func TestAddOpenedEntry(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can show a running jail more")
	}
	for name, swap := range swaps {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			p := waiting(t, func(c *jail.Config) { c.Shares = []jail.Share{{Name: "s", Grows: true}} })
			if err := swap(s.dir); err != nil {
				t.Fatal(err)
			}
			if err := p.Add("s", s.entry("a")); err != nil {
				t.Fatal(err)
			}
			if got, err := shows(p, "a"); got != "given" {
				t.Errorf("it shows %q, %v", got, err)
			}
			if _, err := p.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}
