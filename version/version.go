// Package version names the build.
package version

// Version is set at link time: the tag or commit that the binary was built from.
var Version = "unknown"
