package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"manis/image"
)

// addressVariable is where a process that serves finds containerd's own socket; containerd gives it to the programs that it starts.
const addressVariable = "GRPC_ADDRESS"

// takeImage brings an image of containerd's into Manis' own store: a root filesystem that the owner of a container has a digest of
// can only be made of the image itself, not of what a snapshotter has unpacked.
func takeImage(ctx context.Context, store *image.Store, namespace, name string) (*image.Image, error) {
	address := os.Getenv(addressVariable)
	if address == "" {
		return nil, errors.New("containerd has not told the shim its address, so the image cannot be read")
	}
	conn, err := grpc.NewClient(dialer.DialAddress(address), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dialer.ContextDialer), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	defer conn.Close()
	ctx = namespaces.WithNamespace(ctx, namespace)
	found, err := images.NewImagesClient(conn).Get(ctx, &images.GetImageRequest{Name: name})
	if err != nil {
		return nil, fmt.Errorf("find image %s in containerd: %w", name, err)
	}
	target := found.GetImage().GetTarget()
	hash, err := v1.NewHash(target.GetDigest())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	client := content.NewContentClient(conn)
	img, err := store.Take(ctx, v1.Descriptor{Digest: hash, Size: target.Size, MediaType: types.MediaType(target.MediaType)}, func(h v1.Hash) (io.ReadCloser, error) {
		ctx, stop := context.WithCancel(ctx)
		stream, err := client.Read(ctx, &content.ReadContentRequest{Digest: h.String()})
		if err != nil {
			stop()
			return nil, err
		}
		return &blob{stream: stream, stop: stop}, nil
	})
	if status.Code(errors.Unwrap(err)) == codes.NotFound || status.Code(err) == codes.NotFound {
		return nil, fmt.Errorf("image %s: containerd has not kept its layers, of which the root filesystem of a confidential container is made "+
			"(discard_unpacked_layers has to be false, and the image to be pulled again): %w", name, err)
	}
	return img, err
}

// blob reads one of containerd's.
type blob struct {
	stream content.Content_ReadClient
	stop   func()
	left   []byte
}

func (b *blob) Read(p []byte) (int, error) {
	for len(b.left) == 0 {
		r, err := b.stream.Recv()
		if err != nil {
			return 0, err // io.EOF at the end
		}
		b.left = r.Data
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

func (b *blob) Close() error {
	b.stop()
	return nil
}
