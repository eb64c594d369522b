// Command guest is PID 1 of the VMs that drivers are tested with: it answers
// one-line requests on the agent's port with one line each. It is no agent; it
// shows what a VM really is from the inside.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func main() {
	signal.Ignore(unix.SIGPIPE)
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		os.MkdirAll(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			fmt.Println("mount", m[1], err)
		}
	}
	port := open()
	r := bufio.NewReader(port)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			// The host has closed its end.
			unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
			return
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		out, err := answer(words[0], words[1:], r, port)
		if err != nil {
			out = "error: " + err.Error()
		}
		fmt.Fprintf(port, "%q\n", out)
	}
}

// open finds the port by name, like an agent does.
func open() *os.File {
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			b, _ := os.ReadFile(path)
			if strings.TrimSpace(string(b)) != "manis.agent.0" {
				continue
			}
			f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR, 0)
			if err == nil {
				return f
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// frame brings a network interface up and sends a broadcast frame of a
// protocol number meant for experiments.
func frame(name, text string) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return err
	}
	b := append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"), text...)
	return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: int(ifr.Uint32())})
}

func answer(verb string, args []string, r io.Reader, w io.Writer) (string, error) {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch verb {
	case "echo":
		return strings.Join(args, " "), nil
	case "cat":
		b, err := os.ReadFile(arg(0))
		return string(b), err
	case "head": // head PATH BYTES
		f, err := os.Open(arg(0))
		if err != nil {
			return "", err
		}
		defer f.Close()
		var n int
		fmt.Sscan(arg(1), &n)
		b := make([]byte, n)
		n, err = io.ReadFull(f, b)
		return string(b[:n]), err
	case "write": // write PATH WORD
		return "", os.WriteFile(arg(0), []byte(arg(1)), 0o644)
	case "put": // put DEVICE WORD: overwrite the beginning and flush
		f, err := os.OpenFile(arg(0), os.O_WRONLY, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := f.Write([]byte(arg(1))); err != nil {
			return "", err
		}
		return "", f.Sync()
	case "ls":
		list, err := os.ReadDir(arg(0))
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		return strings.Join(names, " "), err
	case "stat":
		var st unix.Stat_t
		err := unix.Lstat(arg(0), &st)
		return fmt.Sprintf("%o %d %d %d", st.Mode, st.Uid, st.Gid, st.Size), err
	case "chown":
		return "", os.Chown(arg(0), 33, 44)
	case "mknod":
		return "", unix.Mknod(arg(0), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
	case "remove":
		return "", os.Remove(arg(0))
	case "mount": // mount TAG DIR
		os.MkdirAll(arg(1), 0o755)
		return "", unix.Mount(arg(0), arg(1), "9p", 0, "trans=virtio,version=9p2000.L,msize=131072")
	case "flood": // flood BYTES: to the console
		var n int
		fmt.Sscan(arg(0), &n)
		f, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		for line := []byte(strings.Repeat("x", 78) + "\n"); n > 0; n -= len(line) {
			f.Write(line)
		}
		_, err = f.WriteString("end of flood\n")
		return "", err
	case "back": // back BYTES: reads as many raw bytes and sends them back
		var n int64
		fmt.Sscan(arg(0), &n)
		_, err := io.CopyN(w, r, n)
		return "", err
	case "frame": // frame NAME TEXT: sends one Ethernet frame
		return "", frame(arg(0), arg(1))
	case "clock":
		var ts unix.Timespec
		err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
		return fmt.Sprint(ts.Nano()), err
	case "poweroff":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "exit": // the kernel panics without PID 1
		os.Exit(3)
	case "size": // size DEVICE
		f, err := os.Open(arg(0))
		if err != nil {
			return "", err
		}
		defer f.Close()
		n, err := f.Seek(0, io.SeekEnd)
		return fmt.Sprint(n), err
	case "fill": // fill PATH BYTES: writes zeros, then syncs
		var n int64
		fmt.Sscan(arg(1), &n)
		f, err := os.Create(arg(0))
		if err != nil {
			return "", err
		}
		defer f.Close()
		_, err = io.CopyN(f, zeros{}, n)
		return "", err
	case "spin":
		for {
		}
	}
	return "", fmt.Errorf("unknown verb %q", verb)
}
