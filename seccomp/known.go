package seccomp

import "slices"

// Known reports whether there is a system call of this name on any of the machines that Compile knows.
func Known(name string) bool {
	return slices.ContainsFunc([]*convention{amd64, x86, arm64, arm}, func(c *convention) bool {
		_, ok := c.numbers()[name]
		return ok
	})
}
