package jail_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"manis/vmm/jail"
)

// claimArg makes the test binary claim a user by the files named after it, say which, and wait.
const claimArg = "claim-a-user"

func claimAndWait() {
	jail.UserFiles(os.Args[2], os.Args[3])
	uid, _, _, err := jail.ClaimUser("child")
	fmt.Println(uid, err)
	os.Stdin.Read(make([]byte, 1))
}

func rootOnly(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user has no other users to give to jails")
	}
}

// userFiles makes claims be made of a range, with a file of subordinate users; no text is no file.
func userFiles(t *testing.T, users, subordinate string) (usersFile, claimsFile string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"users": users, "subuid": subordinate} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	usersFile, claimsFile = filepath.Join(dir, "users"), filepath.Join(dir, "claims")
	t.Cleanup(jail.UserFiles(usersFile, claimsFile, filepath.Join(dir, "subuid")))
	return usersFile, claimsFile
}

// Two running jails, of one name even, are different users, who can neither signal nor look at each other.
func TestUsersOfTheirOwn(t *testing.T) {
	rootOnly(t)
	var uids, pids [2]int
	for i := range 2 {
		p := waiting(t, func(c *jail.Config) { c.Name = "the same" })
		pids[i] = p.PID
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d", p.PID), &st); err != nil {
			t.Fatal(err)
		}
		uids[i] = int(st.Uid)
		facts, err := p.Verify()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range facts {
			if f.Name == "user" && f.Detail != fmt.Sprintf("%d, no other jail's, the only one in its user namespace", uids[i]) {
				t.Errorf("user %d: %s", uids[i], f.Detail)
			}
		}
	}
	if uids[0] == uids[1] || uids[0] < 0x70000000 || uids[1] < 0x70000000 {
		t.Errorf("the users are %d", uids)
	}
	// What the first one's user can do outside of any namespace.
	as := func(script string, pid int) error {
		cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf(script, pid))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uids[0]), Gid: uint32(uids[0]), NoSetGroups: false}}
		return cmd.Run()
	}
	if err := as("kill -0 %d", pids[0]); err != nil {
		t.Errorf("it cannot signal its own process: %v; so the next proves nothing", err)
	}
	if as("kill -0 %d", pids[1]) == nil {
		t.Error("it can signal the other jail's process")
	}
	for _, file := range []string{"environ", "mem", "root/", "fd/0", "maps"} {
		if as("exec 3</proc/%d/"+file, pids[1]) == nil {
			t.Errorf("it can read the other one's %s", file)
		}
	}
}

func TestUsersAreClaimedOnce(t *testing.T) {
	rootOnly(t)
	const n = 64
	userFiles(t, fmt.Sprintf("100000:%d\n", n), "")
	var mu sync.Mutex
	var all sync.WaitGroup
	seen, releases := map[uint32]int{}, []func(){}
	for range n {
		all.Go(func() {
			uid, locked, release, err := jail.ClaimUser("x")
			mu.Lock()
			defer mu.Unlock()
			if err != nil || !locked {
				t.Error(locked, err)
				return
			}
			seen[uid]++
			releases = append(releases, release)
		})
	}
	all.Wait()
	if len(seen) != n {
		t.Errorf("%d claims are of %d users", n, len(seen))
	}
	if _, _, _, err := jail.ClaimUser("x"); err == nil || !strings.Contains(err.Error(), "no user is free") {
		t.Errorf("one more: error %v", err)
	}
	for _, release := range releases {
		release()
	}
	_, _, release, err := jail.ClaimUser("x")
	if err != nil {
		t.Fatal("after they were released: ", err)
	}
	release()
}

// A user is free again when who has claimed it was killed.
func TestUserOfAKilledProcessIsFree(t *testing.T) {
	rootOnly(t)
	users, claims := userFiles(t, "100000:1", "")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, claimArg, users, claims)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	_, _, _, held := jail.ClaimUser("parent")
	cmd.Process.Kill()
	cmd.Wait()
	if line != "100000 <nil>\n" || held == nil {
		t.Fatalf("the child says %q, and meanwhile: %v", line, held)
	}
	uid, locked, release, err := jail.ClaimUser("parent")
	if err != nil || uid != 100000 || !locked {
		t.Fatalf("afterwards: user %d, locked %v, %v", uid, locked, err)
	}
	release()
}

func TestUserRange(t *testing.T) {
	rootOnly(t)
	for name, c := range map[string]struct {
		users, subordinate string
		want               uint32 // 0: any of the usual
		says               string
	}{
		"usual":                  {},
		"one":                    {users: "200000:1\n", want: 200000},
		"hexadecimal":            {users: "0x70000:0x1", want: 0x70000},
		"subordinate IDs passed": {users: "200000:4", subordinate: "# comment\nme:200000:2\nyou:200003:1000\nbad\n", want: 200002},
		"all subordinate":        {users: "200000:4", subordinate: "me:100000:165536\n", says: "no user is free"},
		"no number":              {users: "many", says: "want FIRST:COUNT"},
		"none":                   {users: "200000:0", says: "want FIRST:COUNT"},
		"negative":               {users: "-1:5", says: "want FIRST:COUNT"},
		"too low":                {users: "1000:10", says: "must be between"},
		"too high":               {users: "0x7fffffff:2", says: "must be between"},
	} {
		t.Run(name, func(t *testing.T) {
			userFiles(t, c.users, c.subordinate)
			uid, _, release, err := jail.ClaimUser("name")
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("user %d, error %v, want %q in it", uid, err, c.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			release()
			if c.want != 0 && uid != c.want || c.want == 0 && (uid < 0x70000000 || uid >= 0x7fff0000) {
				t.Errorf("user %d, want %d", uid, c.want)
			}
		})
	}
	t.Run("others may change it", func(t *testing.T) {
		users, _ := userFiles(t, "200000:1", "")
		if err := os.Chmod(users, 0o666); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := jail.ClaimUser("x"); err == nil || !strings.Contains(err.Error(), "may change it") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no place for locks", func(t *testing.T) {
		users, _ := userFiles(t, "200000:1", "")
		t.Cleanup(jail.UserFiles(users, "/nonexistent/claims"))
		uid, locked, _, err := jail.ClaimUser("x")
		if err != nil || uid != 200000 || locked {
			t.Errorf("user %d, locked %v, %v: want that it is given without a lock", uid, locked, err)
		}
	})
}

// A directory that is the process's own is given to its user: it needs no rights over files of others for it.
func TestOwnDirectory(t *testing.T) {
	host := t.TempDir()
	p := waiting(t, func(c *jail.Config) {
		c.Shares = []jail.Share{{Name: "s", Entries: []jail.Entry{{Name: "own", Host: host, Own: true}}}}
	})
	if _, err := p.Verify(); err != nil {
		t.Error(err)
	}
	var dir, proc unix.Stat_t
	if err := errors.Join(unix.Stat(host, &dir), unix.Stat(fmt.Sprintf("/proc/%d", p.PID), &proc)); err != nil {
		t.Fatal(err)
	}
	if dir.Uid != proc.Uid || os.Geteuid() == 0 && proc.Uid == 0 {
		t.Errorf("the directory belongs to %d, the process to %d", dir.Uid, proc.Uid)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil || !strings.Contains(string(status), "CapPrm:\t0000000000000000\n") {
		t.Errorf("it has capabilities, or: %v", err)
	}
}
