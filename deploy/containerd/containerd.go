// Package containerd holds the drop-ins by which containerd knows Manis, for those that install them.
package containerd

import _ "embed"

// V2 is the drop-in for containerd 2.x, V1 that for 1.6 and 1.7. Both name the handlers manis and manis-confidential.
var (
	//go:embed manis.toml
	V2 string
	//go:embed manis-1.x.toml
	V1 string
)
