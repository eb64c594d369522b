package containerd

import (
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/test/stage"
)

// The community's validation suite of CRI, critest of the project cri-tools, is a program of others that this repository
// neither holds nor builds. Where somebody has it, criVariable names it, and TestCommunity runs it.
const (
	criVariable     = "MANIS_CRITEST"
	handlerVariable = "MANIS_CRITEST_HANDLER" // another runtime to compare with: runc
	focusVariable   = "MANIS_CRITEST_FOCUS"   // a regular expression: these tests only
	resultVariable  = "MANIS_CRITEST_RESULTS" // a directory for the list of results, named like the handler
)

// unlike are the suite's tests that are left out for every runtime, because the images here are not those that it names.
var unlike = map[string]string{
	"public image with digest should be pulled and removed": "wants the very image, by its digest",
	"runtime should support MaskedPaths":                    "wants a shell that does not run ls itself; TestPrivileges masks other paths",
}

// other are those that are left out for Manis, whose pods are machines.
var other = map[string]string{
	"runtime should support HostIpc is true":         "wants System V memory of the host",
	"runtime should support HostNetwork is true":     "hostNetwork is refused",
	"runtime should support portforward in host net": "hostNetwork is refused",
	"mount with 'rshared' should support":            "Bidirectional is refused: what is mounted in a machine cannot appear on the host",
}

const (
	staging  = "k8s-staging-cri-tools/"
	upstream = "e2e-test-images/"
)

// communityImages puts what the suite pulls into the registry: images that do the same as those of its names.
func communityImages(t *testing.T) {
	// Not the sandboxes' image, which would go with it.
	box := derived(t, nil, file{"number", 0o644, "0"},
		// What Debian's busybox lacks, and one that is no link to all the others.
		file{"usr/bin/pgrep", 0o755, "#!/bin/sh\nexec pidof \"$@\"\n"}, file{"usr/bin/ipcs", 0o755, "#!/bin/sh\nexec cat /proc/sysvipc/shm\n"},
		file{"bin/ls", 0o755, "#!/bin/sh\nexec busybox ls \"$@\"\n"})
	for _, repository := range []string{
		upstream + "busybox:1.29-2", upstream + "busybox:1.29-4", "pause:3.9",
		staging + "test-image-latest:latest", staging + "test-image-tag:test", staging + "test-image-tag:all", staging + "test-image-digest:latest",
		staging + "test-image-tags:1", staging + "test-image-tags:2", staging + "test-image-tags:3",
	} {
		push(t, box, repository)
	}
	for i := range 3 {
		push(t, derived(t, nil, file{"number", 0o644, fmt.Sprint(i + 1)}), fmt.Sprintf("%stest-image-%d:latest", staging, i+1))
	}
	for variant, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1003", "username-group": "www-data:www-data"} {
		push(t, derived(t, func(c *v1.Config) { c.User = user }), staging+"test-image-user-"+variant+":latest")
	}
	push(t, derived(t, func(c *v1.Config) { c.User = "1000" },
		file{"etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n"},
		file{"etc/group", 0o644, "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"},
	), staging+"test-image-predefined-group:latest")
	server := func(words, port string) v1.Image {
		return derived(t, func(c *v1.Config) {
			c.Cmd = []string{"/bin/nginx", "master process"}
		}, file{"bin/nginx", 0o755, "#!/bin/sh\necho " + words + "\nmkdir -p /var/run\necho $$ >/var/run/nginx.pid\nhttpd -f -p " + port + " -h /www &\nwait\n"},
			file{"www/index.html", 0o644, "<h1>Welcome to nginx!</h1>\n"})
	}
	push(t, server("nginx", "80"), upstream+"nginx:1.14-2")
	push(t, server("httpd", "80"), upstream+"httpd:2.4.39-4")
	push(t, server("nginx", "12003"), staging+"hostnet-nginx-amd64:latest")
	push(t, derived(t, func(c *v1.Config) { c.Cmd = []string{"/nnp"} }, setuidProgram(t)), upstream+"nonewprivs:1.3")
}

// report is what the suite writes for programs.
type report struct {
	Suites []struct {
		Cases []struct {
			Name    string `xml:"name,attr"`
			Status  string `xml:"status,attr"`
			Skipped struct {
				Message string `xml:"message,attr"`
			} `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// TestCommunity runs the community's suite: all of it has to pass but for what is known, and for what the suite itself leaves
// out.
func TestCommunity(t *testing.T) {
	program := os.Getenv(criVariable)
	if program == "" {
		t.Skipf("%s does not name the community's suite, critest", criVariable)
	}
	ctr(t)
	communityImages(t)
	handler := cmp.Or(os.Getenv(handlerVariable), "manis")
	known := maps.Clone(unlike)
	if handler == "manis" {
		maps.Copy(known, other)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	args := []string{"--config", dir("none.yaml"), "--runtime-endpoint", "unix://" + socket(), "--image-endpoint", "unix://" + socket(), "--runtime-handler", handler,
		"--nri-socket", "/run/nri/nri.sock", "--ginkgo.seed=1", "--ginkgo.no-color", "--ginkgo.junit-report=" + dir("critest.xml"), "--ginkgo.focus=" + os.Getenv(focusVariable)}
	for name := range known {
		args = append(args, "--ginkgo.skip="+name)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = stage.Dir(), suite.env
	out, failed := cmd.CombinedOutput()
	b, err := os.ReadFile(dir("critest.xml"))
	if err != nil {
		t.Fatalf("no report: %v, %v: %s", err, failed, out[max(0, len(out)-3000):])
	}
	var r report
	if err := xml.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			name, isTest := strings.CutPrefix(c.Name, "[It] [k8s.io] ")
			if !isTest || strings.Contains(name, "benchmark") {
				continue
			}
			why := strings.TrimPrefix(strings.TrimPrefix(c.Skipped.Message, "skipped"), " - ")
			for part, reason := range known {
				if c.Status == "skipped" && strings.Contains(name, part) {
					why = reason
				}
			}
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s\t%s\t%s", c.Status, name, why)))
			if c.Status != "passed" && c.Status != "skipped" {
				t.Errorf("%s: %s", c.Status, name)
			}
		}
	}
	slices.Sort(lines)
	if d := os.Getenv(resultVariable); d != "" && os.Getenv(focusVariable) == "" {
		if err := os.WriteFile(filepath.Join(d, handler+".txt"), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
	if failed != nil {
		t.Errorf("critest: %v", failed)
		os.WriteFile(filepath.Join(os.TempDir(), "critest-"+handler+".log"), out, 0o644)
	}
}
