package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"manis/vmm"
)

// preset is the identity of the first command that is sent before QEMU exists.
const preset = 1 << 62

// ignoreShared leaves the guest's RAM, which is a file, out of the state.
var ignoreShared = map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}}

// thaw are the commands that make QEMU go on with the state behind descriptor fd. Written
// before QEMU starts they cost no round trip.
func thaw(fd int) string {
	var text []byte
	for i, c := range []command{
		{"migrate-set-capabilities", ignoreShared, preset},
		// The card's address is the template's: nobody outside is to learn it.
		{"migrate-set-parameters", map[string]any{"announce-rounds": 0}, preset + 1},
		{"migrate-incoming", map[string]any{"uri": fmt.Sprintf("fd:%d", fd)}, preset + 2},
	} {
		c.ID = preset + uint64(i)
		line, err := json.Marshal(c)
		if err != nil {
			panic(err) // constants
		}
		text = append(append(text, line...), '\n')
	}
	return string(text)
}

func (v *machine) Listening() <-chan struct{} { return v.listening }

// freezeTime is how long QEMU may take to write its state, some 400 KB.
const freezeTime = 20 * time.Second

// Freeze implements vmm.VM. The guest must not be stopped before, or its clones
// would stand as well.
func (v *machine) Freeze(ctx context.Context, state *os.File) error {
	if v.config.MemoryFile == "" {
		return fmt.Errorf("%w: only a machine with a memory file can be frozen", vmm.ErrConfig)
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	v.mu.Lock()
	v.paused = true // the end of the migration stops it
	v.mu.Unlock()
	if err := v.execute(ctx, "migrate-set-capabilities", ignoreShared, nil); err != nil {
		return err
	}
	if err := v.monitor.pass(ctx, "getfd", map[string]any{"fdname": "state"}, state); err != nil {
		return err
	}
	if err := v.execute(ctx, "migrate", map[string]any{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	for {
		var progress struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := v.execute(ctx, "query-migrate", nil, &progress); err != nil {
			return err
		}
		switch progress.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("freeze the machine: %s", printable(progress.Error))
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("freeze the machine: %w", ctx.Err())
		}
	}
}

// Insert implements vmm.VM. The slot's upper node stays, and with it what the guest
// believes of the disk; the node below is exchanged.
func (v *machine) Insert(ctx context.Context, d vmm.Disk) error {
	slot := slices.IndexFunc(v.config.Disks, func(s vmm.Disk) bool { return s.Serial == d.Serial })
	if slot < 0 || v.config.Disks[slot].File != nil || v.config.Disks[slot].ReadOnly != d.ReadOnly {
		return fmt.Errorf("%w: no empty slot for disk %s", vmm.ErrConfig, d.Serial)
	}
	v.mu.Lock()
	v.inserted++
	n, before := v.inserted, v.below[slot]
	v.mu.Unlock()
	set := len(v.config.Disks) + n
	node := emptyNode(v.node(n), d.ReadOnly)
	if d.File != nil {
		var err error
		if node, err = fileNode(v.node(n), set, d); err != nil {
			return err
		}
		if err := v.monitor.pass(ctx, "add-fd", map[string]any{"fdset-id": set}, d.File); err != nil {
			return err
		}
	}
	if err := v.execute(ctx, "blockdev-add", node, nil); err != nil {
		return err
	}
	if err := v.execute(ctx, "blockdev-reopen", map[string]any{"options": []any{map[string]any{
		"node-name": fmt.Sprintf("disk%d", slot), "driver": "raw", "read-only": d.ReadOnly, "file": node["node-name"],
	}}}, nil); err != nil {
		return err
	}
	v.mu.Lock()
	if v.below == nil {
		v.below = map[int]below{}
	}
	v.below[slot] = below{n, d.File != nil}
	v.mu.Unlock()
	if err := v.holds(d.Serial, d.File); err != nil {
		return err
	}
	if before.node == 0 {
		return nil
	}
	if err := v.execute(ctx, "blockdev-del", map[string]any{"node-name": v.node(before.node)}, nil); err != nil || !before.file {
		return err
	}
	return v.execute(ctx, "remove-fd", map[string]any{"fdset-id": len(v.config.Disks) + before.node}, nil)
}

// node names the node of the nth file that was inserted. A saved QEMU has nodes of
// its earlier life, so no two lives give the same name.
func (v *machine) node(n int) string { return fmt.Sprintf("file%d-%x", n, v.begun.UnixNano()) }

// below is what a slot holds: the number of its node, and whether it is a file.
type below struct {
	node int
	file bool
}

// pass executes a command that takes a descriptor. It waits its turn like execute.
func (m *monitor) pass(ctx context.Context, name string, arguments any, f *os.File) error {
	conn, ok := m.conn.(*net.UnixConn)
	if !ok {
		return errors.New("pass a descriptor to QEMU: not by this connection")
	}
	return m.send(ctx, name, arguments, nil, func(line []byte) error {
		_, _, err := conn.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
		return err
	})
}
