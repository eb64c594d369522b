// Package oci is the OCI runtime's command line: the verbs of the runtime specification with
// runc's flags, output, errors and exit codes, so that whoever calls runc can call Manis. Containers
// made here live in pods (package pod); the state directory of each says where.
//
// The command manis has both docker's verbs and these, and some have the same names: Wants tells
// which are meant.
package oci
