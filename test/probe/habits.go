package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// habits does in a directory what programs do with files beyond reading and writing them, and says of
// each whether it could be done, as JSON.
func habits(args []string) error {
	dir := args[0]
	found := map[string]string{}
	say := func(name string, err error) {
		found[name] = "done"
		if err != nil {
			found[name] = err.Error()
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	say("listen", listen(path("socket")))
	say("change the socket", changed(path("socket"), 0o640))
	say("make a FIFO", unix.Mkfifo(path("fifo"), 0o600))
	say("change the FIFO", changed(path("fifo"), 0o644))
	if err := os.Mkdir(path("below"), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path("below/removed"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	_, err = f.WriteString("content")
	say("write", err)
	say("truncate", f.Truncate(5))
	say("change", f.Chmod(0o640))
	say("give away", f.Chown(os.Getuid(), os.Getgid()))
	say("look", look(f))
	say("map", mapped(f))
	say("open again", again(f))
	names, err := os.ReadDir(path("below"))
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%q is there", names[0].Name())
	}
	say("list its directory", err)
	say("remove its directory", os.Remove(path("below")))
	say("look after that", look(f))
	say("replace", replaced(path("config")))
	say("rename only where nothing is", renamedToNothing(path("from"), path("to")))
	say("exchange", exchanged(path("one"), path("two")))
	say("exchange files with directories", exchangedWithDirectory(path("file"), path("directory")))
	say("make a file without a name", nameless(dir, path("named")))
	return json.NewEncoder(os.Stdout).Encode(found)
}

// listen serves one client at a socket, which stays.
func listen(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

func changed(path string, mode uint32) error {
	if err := unix.Chmod(path, mode); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&0o7777 != mode {
		return fmt.Errorf("it has the mode %o", st.Mode)
	}
	return nil
}

// look checks that a file that was removed is still as it was left.
func look(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink != 0 || st.Size != 5 || st.Mode != unix.S_IFREG|0o640 {
		return fmt.Errorf("it has %d links, %d bytes and the mode %o", st.Nlink, st.Size, st.Mode)
	}
	return nil
}

// replaced renames a file over one that is open: that one stays what it was for those who have it open.
func replaced(path string) error {
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		return err
	}
	defer os.Remove(path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.WriteFile(path+".new", []byte("new"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(5), f.Chmod(0o640)); err != nil {
		return err
	}
	if err := errors.Join(look(f), mapped(f), again(f)); err != nil {
		return err
	}
	return holds(path, "new")
}

func holds(path, want string) error {
	b, err := os.ReadFile(path)
	if err == nil && string(b) != want {
		err = fmt.Errorf("%s has %q", filepath.Base(path), b)
	}
	return err
}

func rename(from, to string, flags uint) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
}

func renamedToNothing(from, to string) error {
	if err := errors.Join(os.WriteFile(from, []byte("from"), 0o600), os.WriteFile(to, []byte("to"), 0o600)); err != nil {
		return err
	}
	if err := rename(from, to, unix.RENAME_NOREPLACE); err != unix.EEXIST {
		return fmt.Errorf("over a file: %v", err)
	}
	if err := errors.Join(holds(to, "to"), os.Remove(to)); err != nil {
		return err
	}
	if err := rename(from, to, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return errors.Join(holds(to, "from"), os.Remove(to))
}

func exchanged(a, b string) error {
	if err := errors.Join(os.WriteFile(a, []byte("a"), 0o600), os.WriteFile(b, []byte("b"), 0o600)); err != nil {
		return err
	}
	f, err := os.Open(a)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := rename(a, b, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	var open, named unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &open), unix.Stat(b, &named)); err != nil {
		return err
	}
	if open.Ino != named.Ino {
		return errors.New("the open file is not the one of the other name")
	}
	return errors.Join(holds(a, "b"), holds(b, "a"), os.Remove(a), os.Remove(b))
}

func exchangedWithDirectory(file, dir string) error {
	err := errors.Join(os.WriteFile(file, []byte("file"), 0o600), os.Mkdir(dir, 0o755), os.WriteFile(dir+"/in", []byte("in"), 0o600))
	if err != nil {
		return err
	}
	if err := rename(file, dir, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return errors.Join(holds(dir, "file"), holds(file+"/in", "in"), os.RemoveAll(file), os.Remove(dir))
}

// nameless makes a file without a name, and gives it one.
func nameless(dir, name string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "nameless")
	defer f.Close()
	if _, err := f.WriteString("conte"); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o640), look(f), mapped(f), again(f)); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("name it: %w", err)
	}
	return errors.Join(holds(name, "CONte"), os.Remove(name))
}

func mapped(f *os.File) error {
	m, err := unix.Mmap(int(f.Fd()), 0, 5, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, "CON")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	return unix.Munmap(m)
}

func again(f *os.File) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err == nil && string(b) != "CONte" {
		err = fmt.Errorf("it has %q", b)
	}
	return err
}

// leaveMapped writes to a file by memory that it shares with it, a megabyte of the letter x, and is killed before it has
// given it back.
func leaveMapped(args []string) error {
	const size = 1 << 20
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := range m {
		m[i] = 'x'
	}
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}
