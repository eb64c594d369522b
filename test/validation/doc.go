// Package validation runs the OCI runtime-tools validation suite with a runtime and compares the
// verdicts with the list of docs/VALIDATION.md. It knows nothing of Manis but where its
// binary is and which variables move its places.
package validation
