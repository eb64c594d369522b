package oci

import (
	"encoding/binary"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// What a checkpoint or a restore took lies in the working directory afterwards, as CRIU leaves it there
// (criu.org, "Statistics"; its images/stats.proto): Podman puts the first into archives, and shows both.
const (
	dumpStatistics    = "stats-dump"
	restoreStatistics = "stats-restore"
)

// The two words with which such a file begins: of service files, and of statistics among them.
const (
	serviceMagic    = 0x55105940
	statisticsMagic = 0x57093306
)

// writeDump says how long a container stood, and how much was written.
func writeDump(dir string, stood time.Duration, bytes int64) error {
	pages := uint64(bytes / 4096)
	us := uint64(stood.Microseconds())
	// Time to freeze, frozen, to read memory, to write it; pages read, left to the parent, written; time to
	// find files; pages left for later.
	return writeStatistics(dir, dumpStatistics, 1, []uint64{0, us, us, us, pages, 0, pages, 0, 0})
}

// writeRestore says how long a restore took.
func writeRestore(dir string, took time.Duration) error {
	us := uint64(took.Microseconds())
	// Pages compared, and shared since they were equal; time to fork, and in all.
	return writeStatistics(dir, restoreStatistics, 2, []uint64{0, 0, 0, us})
}

// writeStatistics writes the message that is the given field of CRIU's stats_entry; its fields
// are numbered from 1.
func writeStatistics(dir, name string, field protowire.Number, values []uint64) error {
	var m []byte
	for i, v := range values {
		m = protowire.AppendVarint(protowire.AppendTag(m, protowire.Number(i+1), protowire.VarintType), v)
	}
	entry := protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), m)
	b := binary.LittleEndian.AppendUint32(nil, serviceMagic)
	b = binary.LittleEndian.AppendUint32(b, statisticsMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entry)))
	return writeFile(filepath.Join(dir, name), append(b, entry...), 0o600)
}
