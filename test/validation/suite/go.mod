// The OCI runtime-tools validation suite: this module names its version and the checksums of
// what it is built from, apart from those of Manis.
module manis/test/validation/suite

go 1.26.3

require github.com/opencontainers/runtime-tools v0.9.1-0.20251114084447-edf4cb3d2116
