package storage

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseVolume(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if d, err := os.Getwd(); err == nil {
		dir = d
	}
	bind := func(src, dst string) Mount {
		return Mount{Type: Bind, Source: src, Destination: dst, CreateSource: true}
	}
	with := func(m Mount, f func(*Mount)) Mount { f(&m); return m }
	readOnly := func(m *Mount) { m.ReadOnly = true }
	volume := Mount{Type: Volume, Source: "data", Destination: "/d"}
	for value, want := range map[string]Mount{
		"/d":                     {Type: Volume, Destination: "/d"},
		"data:/d":                volume,
		"data:/d:ro":             with(volume, readOnly),
		"data:/d:rw":             volume,
		"data:/d:nocopy":         with(volume, func(m *Mount) { m.NoCopy = true }),
		"data:/d:ro,nocopy,z":    with(volume, func(m *Mount) { m.NoCopy, m.ReadOnly = true, true }),
		"a.b-c_9:/d":             with(volume, func(m *Mount) { m.Source = "a.b-c_9" }),
		"/src:/d":                bind("/src", "/d"),
		"/src:/d/../e//":         bind("/src", "/e"),
		"/src:/d:Z":              bind("/src", "/d"),
		"/src:/d:ro,Z,cached":    with(bind("/src", "/d"), readOnly),
		"/src:/d:rprivate":       bind("/src", "/d"),
		"./site:/d:ro":           with(bind(dir+"/site", "/d"), readOnly),
		".:/d":                   bind(dir, "/d"),
		"..:/d":                  bind(filepath.Dir(dir), "/d"),
		"../x:/d":                bind(filepath.Dir(dir)+"/x", "/d"),
		"/a b/ü:/d d":            bind("/a b/ü", "/d d"),
		"/src/../other/./dir:/d": bind("/other/dir", "/d"),
	} {
		if got, err := ParseVolume(value); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v, %v\nwant %+v", value, got, err, want)
		}
	}
	for value, why := range map[string]string{
		"":                               "empty section",
		":/d":                            "empty section",
		"a:":                             "empty section",
		"a:/d:":                          "empty section",
		"/d:ro":                          "is a mode",
		"/d:ro,z":                        "is a mode",
		"data:d":                         "must be absolute",
		"d":                              "must be absolute",
		"data:/":                         "can't be '/'",
		"data:/..":                       "can't be '/'",
		"/":                              "can't be '/'",
		"a:/b:ro:z":                      "too many colons",
		"site/html:/d":                   "not a volume name",
		"-x:/d":                          "not a volume name",
		"~/x:/d":                         "not a volume name",
		".hidden:/d":                     "not a volume name",
		"data:/d:rx":                     "unknown option \"rx\"",
		"data:/d:ro,rw":                  "contradict",
		"data:/d:ro,ro":                  "contradict",
		"data:/d:z,Z":                    "contradict",
		"/src:/d:nocopy":                 "nocopy is for volumes",
		"/src:/d:shared":                 "do not propagate",
		"/src:/d:rslave":                 "do not propagate",
		"data:/d:,":                      "unknown option",
		"data:/d\x00":                    "not a path",
		strings.Repeat("v", 201) + ":/d": "not a volume name",
	} {
		_, err := ParseVolume(value)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: error %v, want one with %q", value, err, why)
		}
	}
}

func TestParseMount(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if d, err := os.Getwd(); err == nil {
		dir = d
	}
	for value, want := range map[string]Mount{
		"type=bind,source=/s,target=/d":                                        {Type: Bind, Source: "/s", Destination: "/d"},
		"type=bind,src=s,dst=/d,readonly":                                      {Type: Bind, Source: dir + "/s", Destination: "/d", ReadOnly: true},
		"type=bind,src=/s,destination=/d,ro=true":                              {Type: Bind, Source: "/s", Destination: "/d", ReadOnly: true},
		"type=bind,src=/s,dst=/d,readonly=0":                                   {Type: Bind, Source: "/s", Destination: "/d"},
		"TYPE=Bind,src=/s,dst=/d,bind-propagation=rprivate,consistency=cached": {Type: Bind, Source: "/s", Destination: "/d"},
		`type=bind,"src=/a,b",dst=/d`:                                          {Type: Bind, Source: "/a,b", Destination: "/d"},
		"src=v,dst=/d":                                                         {Type: Volume, Source: "v", Destination: "/d"},
		"type=volume,dst=/d":                                                   {Type: Volume, Destination: "/d"},
		"type=volume,src=v,dst=/d,volume-nocopy":                               {Type: Volume, Source: "v", Destination: "/d", NoCopy: true},
		"type=volume,src=v,dst=/d,volume-nocopy=false,volume-driver=local":     {Type: Volume, Source: "v", Destination: "/d"},
		"type=tmpfs,dst=/d":                                                    {Type: Tmpfs, Destination: "/d"},
		"type=tmpfs,dst=/d,tmpfs-size=64m,tmpfs-mode=1770,ro":                  {Type: Tmpfs, Destination: "/d", ReadOnly: true, Options: []string{"size=67108864", "mode=1770"}},
		"tmpfs-mode=700,type=tmpfs,dst=/d":                                     {Type: Tmpfs, Destination: "/d", Options: []string{"mode=0700"}},
	} {
		if got, err := ParseMount(value); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v, %v\nwant %+v", value, got, err, want)
		}
	}
	for value, why := range map[string]string{
		"":                                                  "",
		"type=bind":                                         "target is required",
		"type=bind,dst=/d":                                  "source is required",
		"type=nfs,dst=/d":                                   "want bind, volume or tmpfs",
		"type=bind,src=,dst=/d":                             "want key=value",
		"type=bind,src=/s,dst=d":                            "must be absolute",
		"type=bind,src=/s,dst=/":                            "can't be '/'",
		"type=bind,src=/s,dst=/d,readonly=maybe":            "want true or false",
		"type=bind,src=/s,dst=/d,bogus=1":                   "unexpected key",
		"type=bind,src=/s,dst=/d,bogus":                     "want key=value",
		"type=bind,src=/s,dst=/d,volume-nocopy":             "is for type=volume",
		"type=bind,src=/s,dst=/d,tmpfs-size=1m":             "is for type=tmpfs",
		"type=volume,src=v,dst=/d,bind-propagation=private": "is for type=bind",
		"type=bind,src=/s,dst=/d,bind-propagation=rshared":  "do not propagate",
		"type=volume,src=/abs,dst=/d":                       "not a volume name",
		"type=volume,src=v,dst=/d,volume-driver=x":          "the only one is local",
		"type=tmpfs,src=/s,dst=/d":                          "has no source",
		"type=tmpfs,dst=/d,tmpfs-size=big":                  "want a number of bytes",
		"type=tmpfs,dst=/d,tmpfs-mode=9":                    "octal",
		`type=bind,"src=/s,dst=/d`:                          "comma-separated",
	} {
		_, err := ParseMount(value)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: error %v, want one with %q", value, err, why)
		}
	}
}

func TestParseTmpfs(t *testing.T) {
	for value, want := range map[string]Mount{
		"/run":                         {Type: Tmpfs, Destination: "/run"},
		"/run:":                        {Type: Tmpfs, Destination: "/run"},
		"/run:rw,noexec,size=64m":      {Type: Tmpfs, Destination: "/run", Options: []string{"noexec", "size=67108864"}},
		"/run:ro,mode=1777,uid=5":      {Type: Tmpfs, Destination: "/run", ReadOnly: true, Options: []string{"mode=1777", "uid=5"}},
		"/run:size=50%,nr_inodes=1000": {Type: Tmpfs, Destination: "/run", Options: []string{"size=50%", "nr_inodes=1000"}},
	} {
		if got, err := ParseTmpfs(value); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v, %v\nwant %+v", value, got, err, want)
		}
	}
	for _, value := range []string{"", "run", "/", "/run:bogus", "/run:size=", "/run:size=0%", "/run:size=101%", "/run:mode=rwx",
		"/run:noexec=1", "/run:ro=1", "/run:uid=root", "/run:,", "/run:mode=77777"} {
		if m, err := ParseTmpfs(value); err == nil {
			t.Errorf("%q: %+v, want an error", value, m)
		}
	}
}

func TestResolveMounts(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("file", link); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(dir, "a", "b")
	got, err := ResolveMounts([]Mount{
		{Type: Volume, Source: "v", Destination: "/d/e/f"},
		{Type: Bind, Source: link, Destination: "/etc/conf"},
		{Type: Bind, Source: fresh, Destination: "/d", CreateSource: true},
		{Type: Tmpfs, Destination: "/d/e"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Mount{
		{Type: Bind, Source: fresh, Destination: "/d", CreateSource: true},
		{Type: Bind, Source: file, Destination: "/etc/conf", File: true},
		{Type: Tmpfs, Destination: "/d/e"},
		{Type: Volume, Source: "v", Destination: "/d/e/f"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if info, err := os.Stat(fresh); err != nil || !info.IsDir() {
		t.Errorf("the missing source was not created: %v", err)
	}
}

func TestResolveMountsRefuses(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	missing := filepath.Join(dir, "missing")
	for name, c := range map[string]struct {
		mounts []Mount
		why    string
	}{
		"missing source":   {[]Mount{{Type: Bind, Source: missing, Destination: "/d"}}, "bind source path does not exist: " + missing},
		"socket":           {[]Mount{{Type: Bind, Source: socket, Destination: "/d"}}, "is a socket"},
		"device":           {[]Mount{{Type: Bind, Source: "/dev/null", Destination: "/d"}}, "is a device"},
		"below a file":     {[]Mount{{Type: Bind, Source: "/etc/hostname/x", Destination: "/d", CreateSource: true}}, "not a directory"},
		"same destination": {[]Mount{{Type: Tmpfs, Destination: "/d"}, {Type: Bind, Source: missing, Destination: "/d", CreateSource: true}}, "duplicate mount point: /d"},
	} {
		_, err := ResolveMounts(c.mounts)
		if err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.why)
		}
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused set of mounts created %s", missing)
	}
}

func FuzzParseMounts(f *testing.F) {
	for _, s := range []string{"a:/b:ro,z", "type=bind,source=/s,target=/d,readonly", "/run:size=1m,mode=1777", "/x", "./a:/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, parse := range []func(string) (Mount, error){ParseVolume, ParseMount, ParseTmpfs} {
			m, err := parse(value)
			if err != nil {
				continue
			}
			if !filepath.IsAbs(m.Destination) || m.Destination == "/" || filepath.Clean(m.Destination) != m.Destination {
				t.Errorf("%q: destination %q", value, m.Destination)
			}
			if m.Type == Bind && !filepath.IsAbs(m.Source) {
				t.Errorf("%q: source %q", value, m.Source)
			}
			if m.Type == Volume && m.Source != "" && strings.ContainsAny(m.Source, "/\x00") {
				t.Errorf("%q: volume %q", value, m.Source)
			}
		}
	})
}
