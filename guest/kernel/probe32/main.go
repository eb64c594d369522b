// Command probe32 is compiled for 386 and started by the guest kernel's tests, which
// thereby see that 32-bit programs run.
package main

import (
	"fmt"
	"runtime"
)

func main() {
	fmt.Println(runtime.GOARCH)
}
