package seccomp

import (
	"encoding/binary"
	"fmt"
)

// call is struct seccomp_data without the instruction pointer.
type call struct {
	number, audit uint32
	args          [6]uint64
}

// run interprets a program as the kernel does, and counts the steps. It
// refuses what the kernel's verifier would.
func run(program []byte, c call) (result uint32, steps int, err error) {
	data := make([]byte, 64)
	binary.LittleEndian.PutUint32(data[0:], c.number)
	binary.LittleEndian.PutUint32(data[4:], c.audit)
	for i, a := range c.args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	if len(program)%8 != 0 || len(program) == 0 || len(program)/8 > 4096 {
		return 0, 0, fmt.Errorf("a program of %d bytes", len(program))
	}
	var acc uint32
	for pc := 0; pc < len(program)/8; {
		i := program[8*pc:]
		op, jt, jf, k := binary.LittleEndian.Uint16(i), i[2], i[3], binary.LittleEndian.Uint32(i[4:])
		pc++
		steps++
		var yes bool
		switch op {
		case 0x20:
			if k%4 != 0 || k > 60 {
				return 0, steps, fmt.Errorf("load from %d", k)
			}
			acc = binary.LittleEndian.Uint32(data[k:])
			continue
		case 0x54:
			acc &= k
			continue
		case 0x06:
			return k, steps, nil
		case 0x05:
			pc += int(k)
			continue
		case 0x15:
			yes = acc == k
		case 0x25:
			yes = acc > k
		case 0x35:
			yes = acc >= k
		default:
			return 0, steps, fmt.Errorf("instruction %#x", op)
		}
		if yes {
			pc += int(jt)
		} else {
			pc += int(jf)
		}
	}
	return 0, steps, fmt.Errorf("the program has no end")
}
