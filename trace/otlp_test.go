package trace

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collector is a real HTTP server that takes traces apart.
type collector struct {
	*httptest.Server
	requests chan *http.Request
	traces   chan *tracepb.TracesData
	status   int
}

func newCollector(t *testing.T, start func(http.Handler) *httptest.Server) *collector {
	t.Helper()
	c := &collector{requests: make(chan *http.Request, 4), traces: make(chan *tracepb.TracesData, 4), status: http.StatusOK}
	c.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && r.Header.Get("Content-Encoding") == "gzip" {
			var z *gzip.Reader
			if z, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
				body, err = io.ReadAll(z)
			}
		}
		data := new(tracepb.TracesData)
		if err == nil {
			err = proto.Unmarshal(body, data)
		}
		if err != nil {
			t.Errorf("the collector cannot read the request: %v", err)
		}
		c.requests <- r
		c.traces <- data
		w.WriteHeader(c.status)
	}))
	t.Cleanup(c.Close)
	return c
}

// cleanEnvironment removes what the machine's own OpenTelemetry configuration would bring in.
func cleanEnvironment(t *testing.T) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "OTEL_") || name == "TRACEPARENT" || name == "TRACESTATE" {
			t.Setenv(name, "")
		}
	}
}

func exporter(t *testing.T) *Exporter {
	t.Helper()
	e, err := NewExporter("1.2.3")
	if err != nil || e == nil {
		t.Fatalf("exporter %v, %v", e, err)
	}
	return e
}

func TestExport(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"plain": {},
		"gzip":  {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			cleanEnvironment(t)
			c := newCollector(t, httptest.NewServer)
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL+"/")
			t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, other=1")
			t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
			for k, v := range env {
				t.Setenv(k, v)
			}
			spans := example()
			spans[2].Attributes["error"] = "exec failed"
			if err := exporter(t).Export(t.Context(), spans); err != nil {
				t.Fatal(err)
			}
			r, data := <-c.requests, <-c.traces
			if r.Method != "POST" || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" ||
				r.Header.Get("X-Key") != "a b" || r.Header.Get("Other") != "1" {
				t.Errorf("request %s %s %v", r.Method, r.URL, r.Header)
			}
			attributes := map[string]string{}
			for _, kv := range data.ResourceSpans[0].Resource.Attributes {
				attributes[kv.Key] = kv.Value.GetStringValue()
			}
			if attributes["service.name"] != "manis" || attributes["service.version"] != "1.2.3" || attributes["deployment.environment"] != "test" {
				t.Errorf("resource %v", attributes)
			}
			got := data.ResourceSpans[0].ScopeSpans[0].Spans
			if len(got) != len(spans) {
				t.Fatalf("%d spans, want %d", len(got), len(spans))
			}
			byID := map[string]*tracepb.Span{}
			for _, s := range got {
				if len(s.TraceId) != 16 || len(s.SpanId) != 8 || !bytes.Equal(s.TraceId, got[0].TraceId) {
					t.Errorf("ids %x %x", s.TraceId, s.SpanId)
				}
				byID[string(s.SpanId)] = s
			}
			if len(byID) != len(spans) {
				t.Error("span ids are not unique")
			}
			for i, s := range got {
				want := spans[i]
				if s.Name != want.Name || s.StartTimeUnixNano != uint64(want.Start.UnixNano()) ||
					s.EndTimeUnixNano < s.StartTimeUnixNano {
					t.Errorf("span %v, want %v", s, want)
				}
				parent := ""
				if want.Parent > 0 {
					parent = spans[want.Parent-1].Name
				}
				if p := byID[string(s.ParentSpanId)]; p.GetName() != parent {
					t.Errorf("the parent of %q is %q, want %q", s.Name, p.GetName(), parent)
				}
			}
			if got[2].Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || got[2].Status.Message != "exec failed" || got[0].Status != nil {
				t.Errorf("status %v, %v", got[2].Status, got[0].Status)
			}
		})
	}
}

func TestTracesEndpointIsUsedAsItIs(t *testing.T) {
	cleanEnvironment(t)
	c := newCollector(t, httptest.NewServer)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.URL+"/custom")
	t.Setenv("OTEL_SERVICE_NAME", "mine")
	if err := exporter(t).Export(t.Context(), example()); err != nil {
		t.Fatal(err)
	}
	if r := <-c.requests; r.URL.Path != "/custom" {
		t.Errorf("path %s", r.URL.Path)
	}
	if got := (<-c.traces).ResourceSpans[0].Resource.Attributes[0].Value.GetStringValue(); got != "mine" {
		t.Errorf("service %q", got)
	}
}

func TestExportOverTLS(t *testing.T) {
	cleanEnvironment(t)
	c := newCollector(t, httptest.NewTLSServer)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	if err := exporter(t).Export(t.Context(), example()); err == nil {
		t.Error("an unknown certificate is accepted")
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", file)
	if err := exporter(t).Export(t.Context(), example()); err != nil {
		t.Error(err)
	}
}

func TestTraceParent(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	cleanEnvironment(t)
	c := newCollector(t, httptest.NewServer)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	t.Setenv("TRACEPARENT", "00-"+trace+"-"+span+"-01")
	t.Setenv("TRACESTATE", "vendor=1")
	if err := exporter(t).Export(t.Context(), example()); err != nil {
		t.Fatal(err)
	}
	for i, s := range (<-c.traces).ResourceSpans[0].ScopeSpans[0].Spans {
		if hex.EncodeToString(s.TraceId) != trace || s.TraceState != "vendor=1" {
			t.Errorf("trace %x, state %q", s.TraceId, s.TraceState)
		}
		if root := i == 0; root != (hex.EncodeToString(s.ParentSpanId) == span) {
			t.Errorf("the parent of %q is %x", s.Name, s.ParentSpanId)
		}
	}
	t.Setenv("TRACEPARENT", "00-"+trace+"-"+span+"-00")
	if e, err := NewExporter(""); e != nil || err != nil {
		t.Errorf("below a parent that is not sampled: %v, %v", e, err)
	}
}

func TestParseParent(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for s, want := range map[string]bool{
		"00-" + trace + "-" + span + "-01":                    true,
		"00-" + trace + "-" + span + "-00":                    true,
		"cc-" + trace + "-" + span + "-01-what-comes":         true, // a later version
		"00-" + trace + "-" + span + "-01-more":               false,
		"ff-" + trace + "-" + span + "-01":                    false,
		"00-" + strings.ToUpper(trace) + "-" + span + "-01":   false,
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01":  false,
		"00-" + trace + "-" + strings.Repeat("0", 16) + "-01": false,
		"00-" + trace + "-" + span:                            false,
		"00-" + trace[1:] + "-" + span + "-01":                false,
		"00-" + strings.Repeat("z", 32) + "-" + span + "-01":  false,
		"":         false,
		"nonsense": false,
	} {
		if got := parseParent(s).valid; got != want {
			t.Errorf("%q: valid %v", s, got)
		}
	}
}

func TestExportWanted(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want bool
	}{
		"nothing":         {nil, false},
		"endpoint":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, true},
		"traces endpoint": {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h"}, true},
		"exporter none":   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_TRACES_EXPORTER": "none"}, false},
		"disabled":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_SDK_DISABLED": "true"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cleanEnvironment(t)
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			if got := ExportWanted(); got != c.want {
				t.Errorf("wanted: %v", got)
			}
			e, err := NewExporter("")
			if err != nil || (e != nil) != c.want {
				t.Errorf("exporter %v, %v", e, err)
			}
			if !c.want {
				if err := e.Export(t.Context(), example()); err != nil {
					t.Errorf("export to nowhere: %v", err)
				}
			}
		})
	}
}

func TestBadExportConfiguration(t *testing.T) {
	for name, v := range map[string]string{
		"ENDPOINT": "collector:4318", "PROTOCOL": "grpc", "COMPRESSION": "zstd", "TIMEOUT": "1s", "HEADERS": "x",
		"CERTIFICATE": "/does/not/exist",
	} {
		t.Run(name, func(t *testing.T) {
			cleanEnvironment(t)
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv("OTEL_EXPORTER_OTLP_"+name, v)
			if e, err := NewExporter(""); err == nil {
				t.Errorf("exporter %v without an error", e)
			}
		})
	}
}

// A collector that refuses, redirects, is not there or never answers costs a notice and bounded time.
func TestCollectorThatFails(t *testing.T) {
	cleanEnvironment(t)
	c := newCollector(t, httptest.NewServer)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	for _, status := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusFound} {
		c.status = status
		err := exporter(t).Export(t.Context(), example())
		<-c.requests
		<-c.traces
		if err == nil || !strings.Contains(err.Error(), http.StatusText(status)) {
			t.Errorf("status %d: %v", status, err)
		}
	}

	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+l.Addr().String())
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "50")
	if err := exporter(t).Export(t.Context(), example()); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
		t.Errorf("a collector that never answers: %v", err)
	}
	l.Close()
	if err := exporter(t).Export(t.Context(), example()); err == nil {
		t.Error("no collector: no error")
	}
}
