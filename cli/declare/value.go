package declare

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// The flag values of this file check what they are given at once, so that
// an error names the flag.

// bytesValue is an amount of memory: "512m".
type bytesValue uint64

func (v *bytesValue) String() string {
	if *v == 0 {
		return "0"
	}
	return units.BytesSize(float64(*v))
}

func (v *bytesValue) Set(s string) error {
	n, err := units.RAMInBytes(s)
	if err != nil {
		return err
	}
	if n < 0 {
		return fmt.Errorf("invalid size: %q is negative", s)
	}
	*v = bytesValue(n)
	return nil
}

func (*bytesValue) Type() string { return "bytes" }

// unlimitedBytes is a limit that does not limit.
const unlimitedBytes = math.MaxUint64

// swapValue is bytes, or -1 for no limit.
type swapValue uint64

func (v *swapValue) String() string {
	if *v == unlimitedBytes {
		return "-1"
	}
	return (*bytesValue)(v).String()
}

func (v *swapValue) Set(s string) error {
	if s == "-1" {
		*v = unlimitedBytes
		return nil
	}
	return (*bytesValue)(v).Set(s)
}

func (*swapValue) Type() string { return "bytes" }

// cpusValue is a number of CPUs, kept in thousandths: "1.5".
type cpusValue uint64

func (v *cpusValue) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*v)/1000, 'f', -1, 64)
}

func (v *cpusValue) Set(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return fmt.Errorf("failed to parse %q as a number of CPUs", s)
	}
	if f < 0 || f > 1e6 {
		return fmt.Errorf("%s is no possible number of CPUs", s)
	}
	if f > 0 && f < 0.01 {
		return fmt.Errorf("%s is too few CPUs (the least is 0.01)", s)
	}
	*v = cpusValue(math.Round(f * 1000))
	return nil
}

func (*cpusValue) Type() string { return "decimal" }

// List is a flag that may be given more than once. Values are not split at
// commas.
type List []string

func (v *List) String() string {
	if len(*v) == 0 {
		return ""
	}
	return "[" + strings.Join(*v, ",") + "]"
}

func (v *List) Set(s string) error { *v = append(*v, s); return nil }
func (*List) Type() string         { return "list" }

// checkedList is a List whose values pass a check first.
type checkedList struct {
	list  *List
	check func(string) error
	kind  string
}

func (v checkedList) String() string {
	if v.list == nil {
		return ""
	}
	return v.list.String()
}

func (v checkedList) Set(s string) error {
	if err := v.check(s); err != nil {
		return err
	}
	return v.list.Set(s)
}

func (v checkedList) Type() string {
	if v.kind != "" {
		return v.kind
	}
	return "list"
}

// optional is a flag of which it matters whether it was given.
type optional[T any] struct {
	value T
	set   bool
	parse func(string) (T, error)
	kind  string
}

func (v *optional[T]) String() string {
	if !v.set {
		return ""
	}
	return fmt.Sprint(v.value)
}

func (v *optional[T]) Set(s string) error {
	value, err := v.parse(s)
	if err != nil {
		return err
	}
	v.value, v.set = value, true
	return nil
}

func (v *optional[T]) Type() string { return v.kind }
