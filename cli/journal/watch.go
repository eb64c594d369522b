package journal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watcher tells of changes in a directory.
type watcher struct {
	file *os.File
	// changes receives at least one value after any change.
	changes chan struct{}
	done    chan struct{}
}

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.EMFILE) {
			return nil, fmt.Errorf("watch %s: %w (raise the sysctl fs.inotify.max_user_instances)", dir, err)
		}
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "inotify"), changes: make(chan struct{}, 1), done: make(chan struct{})}
	const what = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	if _, err := unix.InotifyAddWatch(fd, dir, what); err != nil && !errors.Is(err, unix.ENOENT) {
		w.file.Close()
		if errors.Is(err, unix.ENOSPC) {
			return nil, fmt.Errorf("watch %s: %w (raise the sysctl fs.inotify.max_user_watches)", dir, err)
		}
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	go func() {
		defer close(w.done)
		buf := make([]byte, 4096)
		for {
			if _, err := w.file.Read(buf); err != nil {
				return
			}
			select {
			case w.changes <- struct{}{}:
			default:
			}
		}
	}()
	return w, nil
}

func (w *watcher) close() {
	w.file.Close()
	<-w.done
}
