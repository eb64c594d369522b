package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Entry is one file as lstat and llistxattr tell of it.
type Entry struct {
	Path   string            `json:"path"`
	Mode   uint32            `json:"mode"` // with the type bits
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Links  uint64            `json:"links"`
	Inode  uint64            `json:"inode"`
	Major  uint32            `json:"major"`
	Minor  uint32            `json:"minor"`
	Size   int64             `json:"size"`
	Blocks int64             `json:"blocks"`
	MTime  int64             `json:"mtime"`
	Target string            `json:"target"`
	Attrs  map[string][]byte `json:"attrs"`
}

// tree lists everything at and below the paths as JSON.
func tree(roots []string) error {
	var all []Entry
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			e, err := entry(path)
			all = append(all, e)
			return err
		})
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}

func entry(path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, fmt.Errorf("lstat %s: %w", path, err)
	}
	e := Entry{
		Path: path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Links: uint64(st.Nlink), Inode: st.Ino,
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Size: st.Size, Blocks: st.Blocks,
		MTime: st.Mtim.Sec, Attrs: map[string][]byte{},
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if e.Target, err = os.Readlink(path); err != nil {
			return e, err
		}
	}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return e, fmt.Errorf("llistxattr %s: %w", path, err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:max(n, 0)]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return e, fmt.Errorf("lgetxattr %s %s: %w", path, name, err)
		}
		e.Attrs[name] = value[:n]
	}
	return e, nil
}

// writable tries with every means of a process that has all privileges to write into a
// read-only directory, and prints each with what came of it. Status 1 says that nothing
// worked, 0 that something did. The further arguments are tags of 9p exports and paths within
// them, which are mounted anew: TAG/PATH.
func writable(args []string) error {
	dir := args[0]
	file := filepath.Join(dir, "escape")
	worked := false
	try := func(what string, err error) {
		fmt.Printf("%s: %v\n", what, err)
		if err == nil && !strings.HasPrefix(what, "(") {
			worked = true
		}
	}
	create := func(at string) error {
		f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY, 0o666)
		if err == nil {
			_, err = f.WriteString("escaped")
			f.Close()
		}
		return err
	}
	try("create", create(file))
	try("remove", removeFirst(dir))
	try("(remount the mount)", unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("create after remounting the mount", create(file))
	try("(remount the filesystem)", unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	try("create after remounting the filesystem", create(file))
	try("(clear the flag)", setattr(dir))
	try("create after clearing the flag", create(file))
	at, err := os.MkdirTemp("/tmp", "bind-")
	if err != nil {
		return err
	}
	try("(bind elsewhere)", unix.Mount(dir, at, "", unix.MS_BIND|unix.MS_REC, ""))
	try("(make that writable)", unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("create below a second mount", create(filepath.Join(at, "escape")))
	for _, target := range args[1:] {
		tag, path, _ := strings.Cut(target, "/")
		at, err := os.MkdirTemp("/tmp", "nine-")
		if err != nil {
			return err
		}
		try("(mount the export "+tag+")", unix.Mount(tag, at, "9p", 0, "trans=virtio,version=9p2000.L,access=client"))
		try("create below the export "+tag, create(filepath.Join(at, path, "escape")))
		unix.Unmount(at, unix.MNT_DETACH)
	}
	if !worked {
		return errors.New("nothing worked")
	}
	return nil
}

func removeFirst(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		return os.RemoveAll(filepath.Join(dir, e.Name()))
	}
	return errors.New("nothing there")
}

// setattr is mount_setattr(2) with MOUNT_ATTR_RDONLY to clear.
func setattr(path string) error {
	attr := [4]uint64{0, unix.MOUNT_ATTR_RDONLY, 0, 0}
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	cwd := unix.AT_FDCWD
	_, _, errno := unix.Syscall6(unix.SYS_MOUNT_SETATTR, uintptr(cwd), uintptr(unsafe.Pointer(p)), 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// writeFD appends to a file in steps and syncs each, so that what is on the disk is known when
// the machine dies: it prints a number when that many lines are durable.
func writeFD(args []string) error {
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for i := 1; ; i++ {
		if _, err := fmt.Fprintf(f, "line %d\n", i); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		fmt.Println(i)
	}
}
