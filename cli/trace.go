package cli

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"time"

	"manis/cli/declare"
	"manis/cli/terminal"
	"manis/trace"
	"manis/version"
)

// exportTime bounds the sending of spans: nobody waits long for a collector.
const exportTime = 5 * time.Second

// showTrace shows the spans in the form that was asked for, and sends them to an
// OpenTelemetry collector, if one is configured.
func (a *app) showTrace(spans []trace.Span, form declare.TraceForm) {
	switch form {
	case declare.TraceJSON:
		if err := json.NewEncoder(a.err).Encode(spans); err != nil {
			a.note("the trace: %s", err)
		}
	case declare.TraceWaterfall:
		style := trace.Style{Unicode: terminal.Is(a.err) && unicodeLocale(), Color: bool(terminal.Paints(a.err))}
		if _, columns := terminal.Size(a.err); terminal.Is(a.err) {
			style.Columns = int(columns)
		}
		trace.Waterfall(a.err, spans, style)
	}
	if !trace.ExportWanted() {
		return
	}
	exporter, err := trace.NewExporter(version.Version)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), exportTime)
		defer cancel()
		err = exporter.Export(ctx, spans)
	}
	if err != nil {
		a.note("export of the trace: %s", err)
	}
}

func unicodeLocale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToUpper(v)
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}
