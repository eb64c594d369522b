package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
)

// BlockIO limits what a group's processes do with the host's disks.
type BlockIO struct {
	// Weight is that beside other groups, 10 to 1000; 0 leaves what is set.
	Weight uint16
	// Weights are those for single disks.
	Weights []DiskValue
	// Rates are limits; what is written through the kernel's cache counts in version 2 only.
	Rates []DiskRate
}

// DiskValue is a number for one disk.
type DiskValue struct {
	Major, Minor int64
	Value        uint64
}

// DiskRate is a limit of one disk, bytes or operations in a second; 0 takes it away.
type DiskRate struct {
	DiskValue
	Write, Operations bool
}

// LimitBlockIO sets limits of a group that was made with Account.
func (g *Group) LimitBlockIO(b BlockIO) error {
	if b.Weight != 0 {
		if err := g.weigh("", uint64(b.Weight)); err != nil {
			return err
		}
	}
	for _, w := range b.Weights {
		if err := g.weigh(fmt.Sprintf("%d:%d ", w.Major, w.Minor), w.Value); err != nil {
			return err
		}
	}
	for _, r := range b.Rates {
		way, key, unit := "read", "r", "bps"
		if r.Write {
			way, key = "write", "w"
		}
		if r.Operations {
			unit = "iops"
		}
		disk, value := fmt.Sprintf("%d:%d", r.Major, r.Minor), strconv.FormatUint(r.Value, 10)
		if g.unified() {
			if r.Value == 0 {
				value = "max"
			}
			value = key + unit + "=" + value
		}
		err := g.set("blkio", "blkio.throttle."+way+"_"+unit+"_device", "io.max", disk+" "+value)
		if err != nil {
			return fmt.Errorf("disk %s: %w (is there such a disk, and not only a part of one?)", disk, err)
		}
	}
	return nil
}

// weigh writes a weight for all disks, or for one that it begins with.
func (g *Group) weigh(disk string, weight uint64) error {
	value := strconv.FormatUint(weight, 10)
	files := []struct{ v1, v2 string }{{"blkio.weight", "io.bfq.weight"}, {"blkio.bfq.weight", "io.weight"}}
	if disk != "" {
		files[0].v1, files[1].v1 = "blkio.weight_device", "blkio.bfq.weight_device"
	}
	for _, f := range files {
		v := value
		if g.unified() {
			if f.v2 == "io.weight" {
				// In a straight line from version 1's range to that of version 2, 1 to 10000.
				v = strconv.FormatUint(1+(max(weight, 10)-10)*9999/990, 10)
			}
			if disk == "" {
				v = "default " + v
			}
		}
		err := g.set("blkio", f.v1, f.v2, disk+v)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.New("the host's kernel has no weights of I/O (the I/O scheduler BFQ brings them)")
}
