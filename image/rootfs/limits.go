package rootfs

import (
	"fmt"

	"manis/image/fault"
)

// Limits protect the host from what layers expand to. Zero fields take their
// default.
type Limits struct {
	LayerBytes  int64 // uncompressed bytes of one layer's archive; default 128 GiB
	ImageBytes  int64 // bytes of file data stored for one image; default 256 GiB
	Ratio       int64 // stored bytes per compressed byte of a layer, once past 1 GiB; default 256
	Entries     int64 // archive entries of all layers together; default 4 million
	Layers      int   // default 4096
	XattrBytes  int   // names and values of one entry's extended attributes; default 128 KiB
	FreeReserve int64 // bytes that must stay free on the disk; default 256 MiB
}

// ratioFloor is how much a layer may always expand to, whatever its ratio.
const ratioFloor = 1 << 30

// WithDefaults fills in what is zero.
func (l Limits) WithDefaults() Limits {
	def := func(v *int64, to int64) {
		if *v == 0 {
			*v = to
		}
	}
	def(&l.LayerBytes, 128<<30)
	def(&l.ImageBytes, 256<<30)
	def(&l.Ratio, 256)
	def(&l.Entries, 4<<20)
	def(&l.FreeReserve, 256<<20)
	if l.Layers == 0 {
		l.Layers = 4096
	}
	if l.XattrBytes == 0 {
		l.XattrBytes = 128 << 10
	}
	return l
}

func over(what string, limit int64) error {
	return fmt.Errorf("%s (limit %d): %w", what, limit, fault.ErrLimit)
}
