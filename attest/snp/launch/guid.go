package launch

import "encoding/binary"

const guidBytes = 16

// guid names a part of the firmware or of a table, as it is written: the first three numbers, and the last two together.
type guid struct {
	a    uint32
	b, c uint16
	d    uint64
}

// append adds g to b as EFI has it in memory: numbers have their least byte first, the rest is bytes.
func (g guid) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, g.a)
	b = binary.LittleEndian.AppendUint16(b, g.b)
	b = binary.LittleEndian.AppendUint16(b, g.c)
	return binary.BigEndian.AppendUint64(b, g.d)
}

// readGUID reads what append writes; b has guidBytes.
func readGUID(b []byte) guid {
	return guid{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:])}
}
