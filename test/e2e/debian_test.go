package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Python from Debian runs: threads, processes, sockets, files, time zones and a database.
func TestDebianPython(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("python")
	script := `
import sqlite3, subprocess, threading, socket, tempfile, os, json, hashlib, multiprocessing.pool
total = []
ts = [threading.Thread(target=lambda i=i: total.append(sum(range(i * 1000)))) for i in range(8)]
[t.start() for t in ts]; [t.join() for t in ts]
with tempfile.NamedTemporaryFile(suffix=".db") as f:
    db = sqlite3.connect(f.name)
    db.execute("create table t (n integer)")
    db.executemany("insert into t values (?)", [(i,) for i in range(100)])
    db.commit()
    rows = db.execute("select sum(n) from t").fetchone()[0]
s = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(s.getsockname())
a, _ = s.accept()
a.sendall(b"hello"); got = c.recv(5).decode()
out = subprocess.run(["sh", "-c", "echo $((6*7))"], capture_output=True, text=True).stdout.strip()
print(json.dumps([len(total), rows, got, out, os.getpid(), hashlib.sha256(b"x").hexdigest()[:8]]))
`
	if got := w.ok("run", "--rm", "python", "python3", "-c", script); got != `[8, 4950, "hello", "42", 1, "2d711642"]` {
		t.Errorf("python printed %q", got)
	}
}

// nginx from Debian serves a host's directory through published ports.
func TestDebianNginx(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("nginx")
	site := filepath.Join(w.dir, "site")
	if err := os.Mkdir(site, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(site, "index.html"), []byte("<h1>pangolin</h1>"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.up("--name", "web", "-p", "127.0.0.1::80", "-p", "[::1]::80", "-v", site+":/usr/share/nginx/html:ro", "-m", "256m", "--cpus", "2", "nginx")
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(url string) (string, int, error) {
		resp, err := client.Get(url)
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), resp.StatusCode, err
	}
	for line := range strings.Lines(w.ok("port", "web", "80")) {
		url := "http://" + strings.TrimSpace(line) + "/"
		eventually(t, url, func() bool {
			body, code, err := get(url)
			return err == nil && code == 200 && body == "<h1>pangolin</h1>"
		})
	}
	url := "http://" + strings.Fields(w.ok("port", "web", "80"))[0]
	if _, code, err := get(url + "/missing"); err != nil || code != 404 {
		t.Errorf("a page that is not there: %d, %v", code, err)
	}
	// The host's changes show, a large file arrives, requests are logged.
	if err := os.WriteFile(filepath.Join(site, "large"), []byte(noise(4<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	if body, code, err := get(url + "/large"); err != nil || code != 200 || body != noise(4<<20) {
		t.Errorf("%d bytes of a large file, %d, %v", len(body), code, err)
	}
	eventually(t, "the requests in the logs", func() bool { return strings.Contains(w.manis("logs", "web").stdout, "GET /large") })
	w.ok("stop", "web")
	if got := w.field("web", "{{.State.ExitCode}}"); got != "0" {
		t.Errorf("nginx that was asked to end says %s", got)
	}
}

// Debian's package tools work: dpkg and apt install, users are made, directories move and go.
func TestDebianPackageTools(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("debian")
	const control = "Package: pangolin\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: a test\n"
	pkg := filepath.Join(w.dir, "pkg")
	for path, text := range map[string]string{
		"DEBIAN/control":        control,
		"DEBIAN/postinst":       "#!/bin/sh\nset -e\nadduser --system --group --no-create-home pangolin\nchown pangolin: /var/lib/pangolin\n",
		"usr/bin/pangolin":      "#!/bin/sh\necho rolled up\n",
		"var/lib/pangolin/seed": "seed\n",
		"etc/pangolin.conf":     "a=1\n",
	} {
		file := filepath.Join(pkg, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	repo := filepath.Join(w.dir, "repo")
	if err := os.Mkdir(repo, 0o755); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(repo, "pangolin.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", pkg, deb).CombinedOutput(); err != nil {
		t.Skipf("no dpkg-deb: %v: %s", err, out)
	}
	content, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf("%sFilename: ./pangolin.deb\nSize: %d\nSHA256: %x\n", control, len(content), sha256.Sum256(content))
	if err := os.WriteFile(filepath.Join(repo, "Packages"), []byte(index), 0o644); err != nil {
		t.Fatal(err)
	}
	w.up("--name", "c", "-v", repo+":/repo:ro", "debian", "sleep", "1000")
	for _, c := range []struct{ name, script, want string }{
		{"dpkg installs", "command -v adduser >/dev/null || { groupadd -r pangolin; useradd -r -g pangolin -M pangolin; printf '#!/bin/sh\\nexit 0\\n' >/usr/sbin/adduser; chmod 755 /usr/sbin/adduser; }; dpkg --install /repo/pangolin.deb >/dev/null 2>/tmp/err || cat /tmp/err; pangolin; stat -c %U /var/lib/pangolin", "rolled up\npangolin"},
		{"dpkg knows", "dpkg -s pangolin | grep Status; dpkg -L pangolin | grep -c pangolin", "Status: install ok installed\n4"},
		{"dpkg verifies", "dpkg --verify pangolin && echo fine", "fine"},
		{"apt reinstalls a file", "echo '# changed' >>/usr/bin/pangolin; apt-get install -y --reinstall /repo/pangolin.deb >/tmp/out 2>&1 && dpkg --verify pangolin && echo done || cat /tmp/out", "done"},
		{"apt installs from a repository", "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] file:/repo ./' >/etc/apt/sources.list; apt-get purge -y pangolin >/tmp/out 2>&1 && apt-get update >>/tmp/out 2>&1 && apt-get install -y pangolin >>/tmp/out 2>&1 && pangolin || cat /tmp/out", "rolled up"},
		{"apt removes", "apt-get remove -y pangolin >/tmp/out 2>&1 && ! command -v pangolin && echo gone || cat /tmp/out", "gone"},
		{"users", "useradd -m -u 4242 someone && su someone -c 'id -u; touch ~/mine' && stat -c %U /home/someone/mine", "4242\nsomeone"},
		{"hard links", "ln /bin/ls /tmp/ls && cmp /bin/ls /tmp/ls && stat -c %h /tmp/ls && dpkg --verify coreutils && echo fine", "2\nfine"},
		{"directories go", "rm -rf /usr/share/doc /var/lib/apt/lists && test ! -e /usr/share/doc && echo gone", "gone"},
		{"directories move", "mv /usr/share/common-licenses /opt/moved && ls /opt/moved/GPL-2 && test ! -e /usr/share/common-licenses && mv /opt/moved /usr/share/common-licenses && echo back", "/opt/moved/GPL-2\nback"},
		{"files are replaced by renames", "cp /etc/passwd /etc/passwd.new && mv /etc/passwd.new /etc/passwd && id -un", "root"},
		{"perl and locks", "perl -e 'use Fcntl \":flock\"; open F, \">/tmp/l\"; flock F, LOCK_EX or die; print \"locked\"'", "locked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := w.in(t).manis("exec", "c", "sh", "-c", c.script)
			if strings.TrimSpace(r.stdout) != c.want {
				t.Errorf("want %q, got %s", c.want, r)
			}
		})
	}
}

// redis speaks the protocol of redis over a new connection.
func redis(at string, words ...string) (string, error) {
	c, err := net.Dial("tcp", at)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	request := fmt.Sprintf("*%d\r\n", len(words))
	for _, word := range words {
		request += fmt.Sprintf("$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := io.WriteString(c, request); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(buf[:n]))
	if len(fields) == 0 {
		return "", io.ErrUnexpectedEOF
	}
	// A simple string is "+OK", a bulk string has its length on a line before it.
	return strings.TrimPrefix(fields[len(fields)-1], "+"), nil
}

// Redis keeps its data in a named volume over a restart, over a machine that is killed, and
// for another container.
func TestDebianRedisKeepsItsData(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("redis")
	run := []string{"--name", "db", "-p", "127.0.0.1::6379", "-v", "data:/data", "redis",
		"redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always"}
	w.up(run...)
	expect := func(want string, words ...string) {
		t.Helper()
		at := w.ok("port", "db", "6379")
		var got string
		eventually(t, fmt.Sprint(words, " to answer ", want), func() bool {
			var err error
			got, err = redis(at, words...)
			return err == nil && got == want
		})
	}
	expect("OK", "SET", "one", "first")
	expect("first", "GET", "one")
	w.ok("restart", "db")
	expect("first", "GET", "one")
	expect("OK", "SET", "two", "second")
	_, qemu := w.vm("db")
	if err := syscall.Kill(qemu, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.awaitStatus("db", "exited")
	w.ok("start", "db")
	expect("first", "GET", "one")
	expect("second", "GET", "two")
	w.ok("rm", "-f", "-v", "db")
	w.up(run...)
	expect("second", "GET", "two")
}

// PostgreSQL makes a cluster in a named volume and recovers it after its machine is killed.
func TestDebianPostgres(t *testing.T) {
	if !long {
		t.Skip("a database cluster takes a minute to make under emulation (MANIS_TEST_LONG=1)")
	}
	t.Parallel()
	w := newWorld(t)
	w.load("postgres")
	w.up("--name", "db", "-v", "data:/var/lib/postgresql/data", "--shm-size", "256m", "postgres")
	query := func(sql string) string {
		t.Helper()
		var got string
		eventually(t, sql, func() bool {
			r := w.manis("exec", "db", "psql", "-U", "postgres", "-Atc", sql)
			got = strings.TrimSpace(r.stdout)
			return r.code == 0
		})
		return got
	}
	query("create table t (n int)")
	query("insert into t select generate_series(1, 1000)")
	_, qemu := w.vm("db")
	if err := syscall.Kill(qemu, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.awaitStatus("db", "exited")
	w.ok("start", "db")
	if got := query("select count(*) from t"); got != "1000" {
		t.Errorf("%s rows after a killed machine", got)
	}
	w.ok("restart", "db")
	if got := query("select sum(n) from t"); got != "500500" {
		t.Errorf("sum %s after a restart", got)
	}
}
