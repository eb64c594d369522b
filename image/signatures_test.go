package image

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"manis/image/signature"
)

// signed is an artifact with one signature; what it is worth does not matter here.
func signed(t *testing.T, digest v1.Hash, text string) v1.Image {
	t.Helper()
	a, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer:       static.NewLayer(fmt.Appendf(nil, "payload of %s", digest), signature.MediaType),
		Annotations: map[string]string{signature.Annotation: text},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Signatures are found beside the image in its registry, kept without it, and forgotten with the image.
func TestSignaturesOfARegistry(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	push := func(img v1.Image, at string) {
		t.Helper()
		ref, err := name.ParseReference(host + "/" + at)
		if err == nil {
			err = remote.Write(ref, img)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	img := smallImage(t, "signed")
	push(img, "a/b:1")
	s := openStore(t)
	got, err := s.Pull(t.Context(), host+"/a/b:1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{host + "/a/b:1"}
	if list, err := s.FetchSignatures(t.Context(), got, names, PullOptions{}); err != nil || list != nil {
		t.Errorf("without signatures: %v, %v", list, err)
	}
	push(signed(t, got.ManifestID, base64.StdEncoding.EncodeToString([]byte("signature"))), "a/b:"+signature.Tag(got.ManifestID.String()))
	list, err := s.FetchSignatures(t.Context(), got, names, PullOptions{})
	if err != nil || len(list) != 1 || string(list[0].Signature) != "signature" || string(list[0].Payload) != "payload of "+got.ManifestID.String() {
		t.Errorf("got %v, %v", list, err)
	}
	server.Close()
	if kept, err := s.KeptSignatures(got); err != nil || len(kept) != 1 || string(kept[0].Payload) != string(list[0].Payload) {
		t.Errorf("kept are %v, %v", kept, err)
	}
	if _, err := s.Remove(got.ID, true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.signaturesOf(got.ManifestID)); !os.IsNotExist(err) {
		t.Errorf("signatures of an image that is gone: %v", err)
	}
}

func TestSignaturesThatAreNone(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	s := openStore(t)
	got := stock(t, s, smallImage(t, "a"), host+"/a/b:1")
	ref, err := name.ParseReference(host + "/a/b:" + signature.Tag(got.ManifestID.String()))
	if err == nil {
		err = remote.Write(ref, signed(t, got.ManifestID, "not base64!"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.FetchSignatures(t.Context(), got, []string{host + "/a/b:1"}, PullOptions{}); err == nil {
		t.Errorf("got %v, want an error", list)
	}
}

// A layout may hold signatures beside images, which are loaded as before.
func TestSignaturesOfALayout(t *testing.T) {
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	img := smallImage(t, "in a layout")
	digest, err := img.Digest()
	if err == nil {
		err = p.AppendImage(img)
	}
	if err == nil {
		err = p.AppendImage(signed(t, digest, base64.StdEncoding.EncodeToString([]byte("signature"))),
			layout.WithAnnotations(map[string]string{"kind": "dev.cosignproject.cosign/sigs"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	list, err := s.Load(t.Context(), dir, LoadOptions{})
	if err != nil || len(list) != 1 {
		t.Fatalf("%d images, %v", len(list), err)
	}
	kept, err := s.KeptSignatures(list[0])
	if err != nil || len(kept) != 1 || string(kept[0].Payload) != "payload of "+list[0].ManifestID.String() {
		t.Errorf("kept are %v, %v", kept, err)
	}
}
