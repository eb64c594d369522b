package image

import (
	"io"
	"log"
	"testing"
)

func nil2log() *log.Logger { return log.New(io.Discard, "", 0) }

func TestPullAndRootfs(t *testing.T) {
	host := registryServer(t, nil)
	push(t, host+"/a/b:v1", smallImage(t, "hello"))
	s := openStore(t)
	img, err := s.Pull(t.Context(), host+"/a/b:v1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", img)
	fs, release, err := s.Rootfs(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	t.Logf("%+v", fs)
	list, err := s.List()
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
}
