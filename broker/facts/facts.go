// Package facts is what a broker has verified of a request before an owner's own rules decide on it. It is apart from them
// because who asks a broker links it, and need not link the language of rules.
package facts

import (
	"time"

	"manis/attest"
	"manis/trust"
)

// Facts are of one request.
type Facts struct {
	Result   *attest.Result
	Evidence *attest.Evidence
	Manifest *trust.Manifest
	// Digest of the manifest, hex.
	Digest string
	Now    time.Time
}

// Rules decide on them.
type Rules interface {
	// Check returns nil, or the first rule that is not true.
	Check(*Facts) error
}
