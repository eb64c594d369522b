package image

import (
	"testing"

	"manis/image/content"
)

// FuzzManifest feeds what registries and archives say of an image to all that
// parses it. What is accepted must be safe to use as paths and sizes.
func FuzzManifest(f *testing.F) {
	img := smallImage(f, "x")
	m, err := img.RawManifest()
	if err != nil {
		f.Fatal(err)
	}
	c, err := img.RawConfigFile()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m, c)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+zeroHex+`","size":9,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, m, c []byte) {
		layers := 0
		if got, err := parseManifest(m); err == nil {
			layers = len(got.Layers)
			for _, d := range append(got.Layers, got.Config) {
				if content.CheckDigest(d.Digest) != nil || d.Size < 0 {
					t.Fatalf("accepted %+v", d)
				}
			}
		}
		if got, err := parseConfig(c, layers); err == nil {
			for _, d := range got.RootFS.DiffIDs {
				if content.CheckDigest(d) != nil {
					t.Fatalf("accepted %v", d)
				}
			}
			fits(platformOf(got), HostPlatform())
		}
		isIndex("", m)
		if x, err := parseIndex(m); err == nil {
			if d, err := choose(x, HostPlatform()); err == nil && content.CheckDigest(d.Digest) != nil {
				t.Fatalf("chose %+v", d)
			}
		}
	})
}

const zeroHex = "0000000000000000000000000000000000000000000000000000000000000000"
