package kubernetes

import (
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/test/stage"
)

// upstream are Kubernetes' own tests, what runs several of them at once, and the program of the image that most of them use.
var upstream = stage.Source{
	Name:     "kubernetes/e2e",
	Packages: []string{"github.com/onsi/ginkgo/v2/ginkgo", "k8s.io/kubernetes/test/images/agnhost"},
	Tests:    []string{"k8s.io/kubernetes/test/e2e"},
}

const (
	runtimeVariable = "MANIS_E2E_RUNTIME" // manis or runc: what pods get that ask for nothing
	partVariable    = "MANIS_E2E_PART"    // one of those that conformance.txt names; all of them if it is empty
	focusVariable   = "MANIS_E2E_FOCUS"   // another regular expression than those of conformance.txt
	lanesVariable   = "MANIS_E2E_LANES"   // how many tests at once
)

// selection is what conformance.txt says of a part, or of all.
type selection struct {
	focus []string
	skip  []reason
}

// reason is why some tests are left out.
type reason struct {
	tests *regexp.Regexp
	why   string
}

func selected(text, part, runtime string) (selection, error) {
	var s selection
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		switch {
		case f[0] == "" || strings.HasPrefix(f[0], "#"):
		case f[0] == "focus" && len(f) == 3:
			if part == "" || part == f[1] {
				s.focus = append(s.focus, f[2])
			}
		case f[0] == "skip" && len(f) == 4:
			tests, err := regexp.Compile(f[2])
			if err != nil {
				return s, err
			}
			if f[1] == runtime || f[1] == "both" {
				s.skip = append(s.skip, reason{tests, f[3]})
			}
		default:
			return s, fmt.Errorf("what does %q mean?", line)
		}
	}
	if len(s.focus) == 0 {
		return s, fmt.Errorf("there is no part %q", part)
	}
	return s, nil
}

// TestSelection reads conformance.txt.
func TestSelection(t *testing.T) {
	b, err := os.ReadFile("conformance.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, runtime := range []string{"manis", "runc"} {
		all, err := selected(string(b), "", runtime)
		if err != nil || len(all.skip) == 0 {
			t.Errorf("%s: %d left out, %v", runtime, len(all.skip), err)
		}
		one, err := selected(string(b), "storage", runtime)
		if err != nil || len(one.focus) >= len(all.focus) {
			t.Errorf("%s: %d of %d focused, %v", runtime, len(one.focus), len(all.focus), err)
		}
	}
	if _, err := selected(string(b), "nothing", "manis"); err == nil {
		t.Error("a part that there is not was selected")
	}
}

// upstreamImages gives the node images that do the same as those of the tests.
func upstreamImages(t *testing.T, programs string) {
	const from = "registry.k8s.io/e2e-test-images/"
	tools := map[string]string{"agnhost": filepath.Join(programs, "agnhost")}
	for _, name := range []string{"curl", "nc.openbsd"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("no %s on this machine (make kubernetes-e2e installs it)", name)
		}
		tools["usr/bin/"+strings.TrimSuffix(name, ".openbsd")] = path
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, library := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
			tools[strings.TrimPrefix(library, "/")] = library
		}
	}
	for _, tag := range []string{"2.66.1", "2.55"} {
		extended(t, from+"agnhost:"+tag, tools, func(c *v1.Config) {
			c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
			c.Entrypoint, c.Cmd = []string{"/agnhost"}, []string{"pause"}
		})
	}
	same := func(*v1.Config) {}
	for _, tag := range []string{"1.36.1-1", "1.37.0-2"} {
		extended(t, from+"busybox:"+tag, nil, same)
	}
	for _, tag := range []string{"1.27.0-2", "1.28.0-2"} {
		extended(t, from+"nginx:"+tag, nil, func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"httpd", "-f", "-p", "80", "-h", "/etc"}, nil })
	}
	extended(t, from+"nonroot:1.5", nil, func(c *v1.Config) { c.User = "1234" })
	extended(t, "registry.k8s.io/pause:3.10.2", nil, func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"sleep", "1000000"}, nil })
}

// byDefault has pods that name no runtime run on Manis, until the test ends.
func byDefault(t *testing.T, k *stage.Engine) {
	t.Helper()
	policy := filepath.Join(stage.Top(), "deploy", "kubernetes", "default.yaml")
	t.Cleanup(func() { k.OK(t, "delete", "--ignore-not-found", "-f", policy) })
	k.OK(t, "apply", "-f", policy)
	stage.Eventually(t, "the policy to be followed", func() bool { return classOf("default", "") == "manis" })
}

// classOf is the RuntimeClass that a pod would get, with more in its specification.
func classOf(namespace, more string) string {
	return suite.c.says("run", "probe", "-n", namespace, "--image=box", "--dry-run=server", "--overrides={\"spec\":{"+more+"}}", "-o", "jsonpath={.spec.runtimeClassName}")
}

// TestDefault has Manis be what pods get that ask for nothing: with its overhead, without which a machine of a small limit would not live.
func TestDefault(t *testing.T) {
	k := kubectl(t)
	byDefault(t, k)
	for _, other := range []struct{ namespace, more string }{{"kube-system", ""}, {"default", `"hostNetwork":true`}} {
		if got := classOf(other.namespace, other.more); got != "" {
			t.Errorf("a pod in %s with {%s} gets the class %q", other.namespace, other.more, got)
		}
	}
	t.Cleanup(func() { k.OK(t, "delete", "pod", "unnamed", "--grace-period=1", "--ignore-not-found") })
	apply(t, k, littlePod("unnamed", "unnamed", "runc", idle, ""))
	k.OK(t, "wait", "--for=condition=Ready", "pod/unnamed", "--timeout=110s")
	k.Prints(t, "manis 448Mi", "get", "pod", "unnamed", "-o", "jsonpath={.spec.runtimeClassName} {.spec.overhead.memory}")
}

// TestUpstream runs Kubernetes' own tests with a runtime as what pods get that ask for nothing: all that are selected have to pass.
func TestUpstream(t *testing.T) {
	on := os.Getenv(runtimeVariable)
	if on == "" {
		t.Skipf("long: %s is not set", runtimeVariable)
	}
	if on != "manis" && on != "runc" {
		t.Fatalf("%s=%s: there are manis and runc", runtimeVariable, on)
	}
	k := kubectl(t)
	text, err := os.ReadFile("conformance.txt")
	if err != nil {
		t.Fatal(err)
	}
	part := os.Getenv(partVariable)
	chosen, err := selected(string(text), part, on)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := upstream.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	upstreamImages(t, programs)
	nameServer(t, k)
	// Another runtime's pods are those that nobody has given a class.
	if on == "manis" {
		byDefault(t, k)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Hour)
	defer cancel()
	report := dir("upstream.xml")
	focus := cmp.Or(os.Getenv(focusVariable), strings.Join(chosen.focus, "|"))
	args := []string{"--procs=" + cmp.Or(os.Getenv(lanesVariable), "4"), "--no-color", "--timeout=5h", "--seed=1", "--output-dir=" + stage.Dir(), "--junit-report=upstream.xml", "--focus=" + focus}
	for _, r := range chosen.skip {
		args = append(args, "--skip="+r.tests.String())
	}
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "ginkgo"), append(args, filepath.Join(programs, "e2e.test"), "--", "--kubeconfig="+dir("kubeconfig"),
		"--provider=skeleton", "--kubectl-path="+filepath.Join(suite.c.programs, "kubectl"), "--report-dir="+dir("report"))...)
	cmd.Env, cmd.Dir = suite.c.env, stage.Dir()
	log, err := os.Create(filepath.Join(cmp.Or(os.Getenv("MANIS_TEST_LOGS"), stage.Dir()), "upstream-"+on+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	failed := cmd.Run()
	out, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("no report: %v, %v: %s", err, failed, out[max(0, len(out)-3000):])
	}
	lines, bad, err := judged(b, chosen, focus)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range bad {
		t.Errorf("failed: %s", name)
	}
	if failed != nil && len(bad) == 0 {
		t.Errorf("the suite: %v: %s", failed, out[max(0, len(out)-3000):])
	}
	lines = append([]string{"# runtime: " + on + ", focus: " + focus}, lines...)
	if os.Getenv(focusVariable) != "" {
		t.Log(strings.Join(lines, "\n")) // of somebody's own choice: what is kept stays
		return
	}
	name := "upstream-" + on
	if part != "" {
		name += "-" + part
	}
	record(t, name, lines)
}

// judged makes a line for each test: how it ended, its name, and why it was left out. The first one counts.
func judged(report []byte, chosen selection, focus string) (lines, bad []string, err error) {
	var r struct {
		Suites []struct {
			Cases []struct {
				Name   string `xml:"name,attr"`
				Status string `xml:"status,attr"`
				Skip   struct {
					Message string `xml:"message,attr"`
				} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(report, &r); err != nil {
		return nil, nil, err
	}
	in, err := regexp.Compile(focus)
	if err != nil {
		return nil, nil, err
	}
	count := map[string]int{}
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			name, isTest := strings.CutPrefix(c.Name, "[It] ")
			if !isTest || !in.MatchString(name) {
				continue
			}
			why := ""
			if c.Status == "skipped" {
				why = c.Skip.Message
				for _, s := range slices.Backward(chosen.skip) {
					if s.tests.MatchString(name) {
						why = s.why
					}
				}
			} else if c.Status != "passed" {
				bad = append(bad, name)
			}
			count[c.Status]++
			lines = append(lines, strings.TrimSpace(c.Status+"\t"+name+"\t"+why))
		}
	}
	slices.Sort(lines)
	return append([]string{fmt.Sprintf("# %d passed, %d failed, %d left out", count["passed"], len(bad), count["skipped"])}, lines...), bad, nil
}
