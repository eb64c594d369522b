package pod

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A pod ends while what follows its network asks for the containers: neither waits for the other.
func TestEndWhileItsNetworkChanges(t *testing.T) {
	p := New(nil, t.TempDir())
	p.releases = append(p.releases, func() {
		looked := make(chan struct{})
		go func() {
			p.resolveAll(context.Background())
			close(looked)
		}()
		<-looked
	})
	ended := make(chan struct{})
	go func() {
		p.End()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the pod does not end")
	}
	if err := p.add(&member{id: "late"}); !errors.Is(err, ErrGone) {
		t.Errorf("a container of a pod that has ended: %v", err)
	}
}
