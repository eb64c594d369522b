// Package seccomp compiles seccomp profiles, in docker's JSON format or in that
// of the OCI runtime-spec, to the BPF programs that the Linux kernel runs before
// each system call. It does so in pure Go and for a kernel that is not the
// host's: the guest's. It holds the default profile of a container. The package knows
// neither containers nor how a program is installed.
//
// A profile goes through three stages:
//
//	Parse or Default  text              -> Profile: rules with conditions on caps, arch, kernel
//	Profile.Resolve   Profile, Target   -> LinuxSeccomp: the rules that hold for one container
//	Compile           LinuxSeccomp      -> Filter: struct sock_filter[] and seccomp(2) flags
//
// Where a profile leaves a choice, the answer is the one that users of runc and
// libseccomp know:
//
//   - Names of system calls that no table knows are ignored.
//   - An architecture that the profile does not list kills the thread. The
//     numbers of the x32 ABI do so too, unless SCMP_ARCH_X32 is listed: then they
//     give ENOSYS, because the guest kernel has no x32.
//   - A number above the highest one that the profile names gives ENOSYS instead of
//     the default action, unless that lets calls pass: a C library that probes for
//     a new call then falls back, where EPERM would make it fail.
//   - A rule without arguments beats those with arguments for the same call. Among rules
//     with arguments the first that matches wins.
//   - The conditions of a rule must all hold, but when two of them look at the
//     same argument, it is enough that one of all the conditions holds.
//   - On 32-bit architectures only the low half of a value is compared.
//   - A rule whose action is the default action says nothing and is dropped.
package seccomp

//go:generate go run generate.go
