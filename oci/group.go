package oci

import (
	"fmt"
	"path"
	"strings"

	"manis/cgroup"
)

// groupPath is the control group that a container's host side is in: that of cgroupsPath, which under
// --systemd-cgroup is SLICE:PREFIX:NAME, or one of our own.
func (a *app) groupPath(id, asked string) (string, error) {
	switch {
	case asked == "":
		return "manis/" + id, nil
	case !a.systemdCgroup && !strings.Contains(asked, ":"):
		return asked, nil
	}
	parts := strings.Split(asked, ":")
	if len(parts) != 3 || parts[2] == "" {
		return "", fmt.Errorf("config.json: linux.cgroupsPath: expected SLICE:PREFIX:NAME with --systemd-cgroup, got %q", asked)
	}
	slice := parts[0]
	if slice == "" {
		slice = "system.slice"
	}
	dir, err := expandSlice(slice)
	if err != nil {
		return "", fmt.Errorf("config.json: linux.cgroupsPath: %w", err)
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

// makeGroup makes it and puts processes there. A host that does not permit it is no error unless the
// group was asked for by root.
func makeGroup(path string, asked bool, pids ...int) (*cgroup.Group, error) {
	g, err := cgroup.Make(cgroup.Config{Path: path, Account: true})
	if err == nil {
		for _, pid := range pids {
			if err = g.Join(pid); err != nil {
				g.Remove()
				break
			}
		}
	}
	if err == nil {
		return g, nil
	}
	if asked && hostRoot() {
		return nil, fmt.Errorf("put the container into its control group %s: %w", path, err)
	}
	return nil, nil
}

// removeGroup removes what makeGroup has made. What others have put into it stays.
func removeGroup(path string) {
	if g, err := cgroup.Find(cgroup.Config{Path: path}); path != "" && err == nil {
		g.Remove()
	}
}
