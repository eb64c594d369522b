package node

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiStandIn is the part of an API server that is asked.
type apiStandIn struct {
	mu sync.Mutex
	// set is the DaemonSet, "" when there is none; deleting is the number of answers until one that is deleted is gone.
	set      string
	deleting int
	node     map[string]map[string]any
	status   int
}

func (a *apiStandIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var body map[string]any
	json.NewDecoder(r.Body).Decode(&body)
	switch what := r.Method + " " + r.URL.Path; {
	case a.status != 0:
		w.WriteHeader(a.status)
	case r.Header.Get("Authorization") != "Bearer word":
		w.WriteHeader(http.StatusUnauthorized)
	case what == "PATCH /api/v1/nodes/n1" && r.Header.Get("Content-Type") == "application/merge-patch+json":
		for kind, values := range body["metadata"].(map[string]any) {
			for name, value := range values.(map[string]any) {
				if a.node[kind][name] = value; value == nil {
					delete(a.node[kind], name)
				}
			}
		}
		fmt.Fprint(w, "{}")
	case !strings.HasSuffix(what, " /apis/apps/v1/namespaces/ns/daemonsets/d") || a.set == "":
		w.WriteHeader(http.StatusNotFound)
	case r.Method == "DELETE":
		if body["propagationPolicy"] != "Foreground" {
			a.set = ""
		} else {
			a.set = `{"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z"}}`
		}
		fmt.Fprint(w, a.set)
	default:
		fmt.Fprint(w, a.set)
		if a.deleting > 0 && strings.Contains(a.set, "deletionTimestamp") {
			if a.deleting--; a.deleting == 0 {
				a.set = ""
			}
		}
	}
}

func cluster(t *testing.T) (*apiStandIn, *Cluster) {
	t.Helper()
	a := &apiStandIn{set: `{"metadata": {}}`, node: map[string]map[string]any{"labels": {}, "annotations": {}}}
	server := httptest.NewTLSServer(a)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, text := range map[string]string{"ca.crt": string(ca), "token": "word\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := newCluster(server.URL, dir)
	if err != nil {
		t.Fatal(err)
	}
	return a, c
}

func TestMark(t *testing.T) {
	a, c := cluster(t)
	for _, s := range []struct {
		version  string
		problems []string
		want     string
	}{
		{"v1-abc", []string{"no QEMU", "no containerd"}, "map[annotations:map[manis.io/problem:no QEMU; no containerd] labels:map[manis.io/ready:false manis.io/version:v1-abc]]"},
		{"v1-abc", nil, "map[annotations:map[] labels:map[manis.io/ready:true manis.io/version:v1-abc]]"},
		{"", nil, "map[annotations:map[] labels:map[]]"},
	} {
		if err := c.Mark(t.Context(), "n1", s.version, s.problems); err != nil || fmt.Sprint(a.node) != s.want {
			t.Errorf("%v, %v", a.node, err)
		}
	}
	a.status = http.StatusForbidden
	if err := c.Mark(t.Context(), "n1", "v1", nil); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("%v", err)
	}
}

func TestLeaving(t *testing.T) {
	a, c := cluster(t)
	f := Fleet{"ns", "d"}
	for _, s := range []struct {
		set    string
		status int
		want   bool
		fails  bool
	}{
		{set: `{"metadata": {}}`},
		{set: `{"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z"}}`, want: true},
		{set: "", want: true},
		{set: "", status: http.StatusUnauthorized, fails: true}, // what cannot be found out is no reason to remove anything
		{set: "", status: http.StatusInternalServerError, fails: true},
		{set: "not JSON", fails: true},
	} {
		a.set, a.status = s.set, s.status
		if got, err := c.Leaving(t.Context(), f); got != s.want || (err != nil) != s.fails {
			t.Errorf("%+v: %v, %v", s, got, err)
		}
	}
}

func TestRetire(t *testing.T) {
	a, c := cluster(t)
	a.deleting = 3
	if err := c.Retire(t.Context(), Fleet{"ns", "d"}); err != nil || a.set != "" || a.deleting != 0 {
		t.Errorf("%v, and %q is left", err, a.set)
	}
	if err := c.Retire(t.Context(), Fleet{"ns", "d"}); err != nil {
		t.Errorf("retired twice: %v", err)
	}
	a.set = `{"metadata": {}}`
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Retire(ctx, Fleet{"ns", "d"}); err == nil {
		t.Error("it is not gone")
	}
}

func TestKeepLeaves(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		h, _ := host(t, "v2.4.2")
		a, c := cluster(t)
		ctx, cancel := context.WithCancel(t.Context())
		k := &Keeper{Host: *h, Release: release(t, "one"), Version: "v1", Cluster: c, Node: "n1", Fleet: Fleet{"ns", "d"}, Every: time.Millisecond, Leave: time.Minute}
		done := make(chan error, 1)
		go func() { done <- k.Keep(ctx) }()
		for {
			a.mu.Lock()
			version := a.node["labels"][VersionLabel]
			if version != nil && deleted {
				a.set = ""
			}
			a.mu.Unlock()
			if version != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if there(h.Prefix) == deleted || there(h.DropIn) == deleted || (a.node["labels"][VersionLabel] == nil) != deleted {
			t.Errorf("deleted: %v, and there is the prefix: %v, the drop-in: %v, labels: %v", deleted, there(h.Prefix), there(h.DropIn), a.node["labels"])
		}
	}
}

func TestFleetNames(t *testing.T) {
	for _, s := range []string{"", "a", "a/", "/b", "a/b/c", "a/../b", "A/b"} {
		if f, err := ParseFleet(s); err == nil {
			t.Errorf("%q is taken for %v", s, f)
		}
	}
}
