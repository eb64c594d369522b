package cgroup

import (
	"fmt"
	"path"
	"strings"
)

// Expand is the path of the control group that systemd gives a unit which is named SLICE:PREFIX:NAME, as callers
// of OCI runtimes do. It asks nobody.
func Expand(name string) (string, error) {
	parts := strings.Split(name, ":")
	if len(parts) != 3 || parts[2] == "" {
		return "", fmt.Errorf("expected SLICE:PREFIX:NAME with --systemd-cgroup, got %q", name)
	}
	slice := parts[0]
	if slice == "" {
		slice = "system.slice"
	}
	dir, err := expandSlice(slice)
	if err != nil {
		return "", err
	}
	unit := parts[2]
	if !strings.HasSuffix(unit, ".slice") {
		unit += ".scope"
	}
	if parts[1] != "" {
		unit = parts[1] + "-" + unit
	}
	return path.Join(dir, unit), nil
}

// expandSlice is the path of a slice's control group: a-b.slice lies in a.slice (systemd.slice(5)).
func expandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("invalid slice name: %s", slice)
	}
	if name == "-" {
		return "/", nil
	}
	dir, prefix := "/", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("invalid slice name: %s", slice)
		}
		prefix += part
		dir = path.Join(dir, prefix+".slice")
		prefix += "-"
	}
	return dir, nil
}
