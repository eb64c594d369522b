package monitor

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"manis/container"
	"manis/place"
)

// Of a hundred who claim ten machines at once ten get one each, and the others none.
func TestClaimRace(t *testing.T) {
	const machines, clients = 10, 100
	dir, err := os.MkdirTemp("/tmp", "manis-claim-") // short: a socket's address holds 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	places := &place.Places{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}
	if err := places.Make(); err != nil {
		t.Fatal(err)
	}
	store, err := container.Open(places.Containers(), places.Run)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	given := map[string][]int{} // container: machines
	var sockets []string
	var listeners []net.Listener
	var all sync.WaitGroup
	for i := range machines {
		s := &Standby{key: fmt.Sprintf("%0*x", poolKey, i)}
		l, path, err := s.listen(places)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		sockets = append(sockets, path)
		all.Go(func() {
			for {
				conn, err := l.AcceptUnix()
				if err != nil {
					return
				}
				c, err := s.accept(conn, places, PodOwners{})
				if err != nil {
					conn.Close()
					continue
				}
				os.Remove(path)
				l.Close()
				c.file.Close()
				c.log.Close()
				mu.Lock()
				given[c.request.ID] = append(given[c.request.ID], i)
				mu.Unlock()
				fmt.Fprintln(conn, 1)
				conn.Close()
				return
			}
		})
	}
	// One that was killed, first of all.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(places.Pool(), strings.Repeat("f", poolKey)+"-1"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	sockets = append([]string{dead.Addr().String()}, sockets...)

	won := make([]bool, clients)
	ids := make([]string, clients)
	start := make(chan struct{})
	var clientsDone sync.WaitGroup
	for i := range clients {
		c, err := store.Create(&container.Config{Name: fmt.Sprint("c", i)})
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = c.ID
		log, err := os.Create(filepath.Join(c.Dir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(ends[0])
		front := os.NewFile(uintptr(ends[1]), "control")
		clientsDone.Go(func() {
			defer log.Close()
			defer front.Close()
			<-start
			won[i] = claim(t.Context(), sockets, c, front, log)
		})
	}
	close(start)
	clientsDone.Wait()
	for _, l := range listeners {
		l.Close()
	}
	all.Wait()
	winners := 0
	for i := range clients {
		got := len(given[ids[i]])
		if got > 1 || won[i] != (got == 1) {
			t.Errorf("client %d was told %v and has machines %v", i, won[i], given[ids[i]])
		}
		if won[i] {
			winners++
		}
	}
	if winners != machines {
		t.Errorf("%d got a machine, of %d", winners, machines)
	}
	if left, _ := filepath.Glob(filepath.Join(places.Pool(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Who connects and says nothing, or nonsense, takes no machine from anybody.
func TestNonsenseIsNoClaim(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "manis-claim-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	places := &place.Places{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}
	if err := places.Make(); err != nil {
		t.Fatal(err)
	}
	s := &Standby{key: strings.Repeat("0", poolKey)}
	l, path, err := s.listen(places)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, say := range map[string]func(net.Conn){
		"nothing":  func(c net.Conn) { c.Close() },
		"no files": func(c net.Conn) { fmt.Fprintf(c, `{"id":"x","root":%q}`, filepath.Join(places.Containers(), "x")) },
		"silence":  func(net.Conn) {},
	} {
		client, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		say(client)
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.accept(conn, places, PodOwners{}); err == nil {
			t.Errorf("%s is a claim", name)
		}
		conn.Close()
		client.Close()
	}
}
