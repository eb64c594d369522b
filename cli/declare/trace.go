package declare

import "fmt"

// TraceForm says how a start shows where its time went; "" is not at all.
type TraceForm string

const (
	// TraceWaterfall is a drawing for people.
	TraceWaterfall TraceForm = "waterfall"
	// TraceJSON is one line for programs: the spans as a list.
	TraceJSON TraceForm = "json"
)

func (f *TraceForm) String() string { return string(*f) }

// Set also takes the words of a flag that is on or off, which is what --trace looks like.
func (f *TraceForm) Set(s string) error {
	switch s {
	case string(TraceWaterfall), string(TraceJSON):
		*f = TraceForm(s)
	case "true":
		*f = TraceWaterfall
	case "false":
		*f = ""
	default:
		return fmt.Errorf("%q is no form of a trace: there are waterfall and json", s)
	}
	return nil
}

func (*TraceForm) Type() string { return "form" }
