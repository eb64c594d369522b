// Package host knows what this host can do for virtual machines, and what its
// user can do about it where it cannot: the facts that `manis doctor` shows, and
// the choice of the accelerator. It knows no sandbox and prints nothing.
package host
