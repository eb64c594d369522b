package shim

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"manis/trust"
)

func TestAnnotationsOfTheClass(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	m := &trust.Manifest{Format: trust.Format, Version: 1, Expires: time.Unix(2e9, 0).UTC(), Network: "pod", Calls: []string{}, Containers: []trust.Container{{}}}
	canonical, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := trust.Sign(canonical, key)
	if err != nil {
		t.Fatal(err)
	}
	owner := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: trust.KeyDER(key.Public().(ed25519.PublicKey))}))
	for name, c := range map[string]struct {
		annotations  map[string]string
		confidential bool
		want         string
	}{
		"another class": {map[string]string{"manis.boot": "cold"}, false, ""},
		"complete":      {map[string]string{manifestAnnotation: string(envelope), ownerAnnotation: owner, brokerAnnotation: "http://b"}, true, ""},
		"no key":        {map[string]string{manifestAnnotation: string(envelope)}, false, ownerAnnotation},
		"no manifest":   {map[string]string{ownerAnnotation: owner}, false, manifestAnnotation},
		"a broken one":  {map[string]string{manifestAnnotation: "{}", ownerAnnotation: owner}, false, manifestAnnotation},
		"another's PEM": {map[string]string{manifestAnnotation: string(envelope), ownerAnnotation: "key"}, false, ownerAnnotation},
	} {
		got, err := trustOf(c.annotations)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || (got != nil) != c.confidential {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for body, want := range map[string]bool{"class = 'confidential'\n": true, `class = "confidential"`: true, "class = 'other'": false, "": false} {
		b, err := proto.Marshal(&runtimeoptions.Options{ConfigBody: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		if got := wantsConfidential(&anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: b}); got != want {
			t.Errorf("options %q: %v", body, got)
		}
	}
	if wantsConfidential(nil) {
		t.Error("no options are those of the class")
	}
}
