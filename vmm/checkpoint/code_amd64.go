package checkpoint

import "unsafe"

// resumerCode is the address of the resumer's code in this program.
func resumerCode() unsafe.Pointer
