package bundle

import (
	"io/fs"
	"strings"
	"testing"
)

// TestDisks plans block devices of the host for a machine that can have them.
func TestDisks(t *testing.T) {
	files := map[string]node{
		"/sys/dev/block": {mode: fs.ModeDir}, "/sys/dev/block/8:0": {mode: fs.ModeDir}, "/sys/dev/block/7:3": {mode: fs.ModeDir},
		"/sys/dev/block/7:4": {mode: fs.ModeDir}, "/sys/dev/block/7:4/loop/backing_file": {mode: 0o444},
	}
	disks := func(over string) (*Plan, error) {
		t.Helper()
		return parse(t, with(t, over)).plan(Environment{Disks: true}, fakeHost(files))
	}
	p, err := disks(`{"linux":{"devices":[
		{"path":"/dev/a","type":"b","major":8,"minor":0,"fileMode":432,"uid":1,"gid":2},
		{"path":"/dev/free","type":"b","major":7,"minor":3},
		{"path":"/dev/bound","type":"b","major":7,"minor":4}],
		"resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"minor":0,"access":"r"},
			{"allow":true,"type":"b","major":7,"minor":4,"access":"rwm"}]}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Disks) != 2 || len(p.Create.Devices) != 3 {
		t.Fatalf("disks %v, devices %v", p.Disks, p.Create.Devices)
	}
	a, bound := p.Disks[0], p.Disks[1]
	if a.Major != 8 || a.Minor != 0 || !a.ReadOnly || a.Device.Path != "/dev/a" || a.Device.Access != "r" || a.Device.Mode != 0o660 || a.Device.Uid != 1 || a.Device.Gid != 2 {
		t.Errorf("%+v", a)
	}
	if bound.Major != 7 || bound.Minor != 4 || bound.ReadOnly || bound.Device.Access != "rwm" {
		t.Errorf("a loop device with a file: %+v", bound)
	}
	for says, over := range map[string]string{
		"does not let the container read": `{"linux":{"devices":[{"path":"/dev/a","type":"b","major":8,"minor":0}],
			"resources":{"devices":[{"allow":true,"type":"b","major":8,"minor":0,"access":"rwm"},{"allow":false,"type":"b","major":8,"minor":0,"access":"rwm"}]}}}`,
		"one more block device": `{"linux":{"devices":[` + strings.Repeat(`{"path":"/dev/a","type":"b","major":8,"minor":0},`, maxDisks) + `{"path":"/dev/b","type":"b","major":8,"minor":0}]}}`,
	} {
		if _, err := disks(over); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q, got %v", says, err)
		}
	}
	// Where no machine can have them they are refused.
	if _, err := parse(t, with(t, `{"linux":{"devices":[{"path":"/dev/a","type":"b","major":8,"minor":0}]}}`)).plan(Environment{}, fakeHost(files)); err == nil {
		t.Error("not refused")
	}
}
