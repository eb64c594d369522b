package image

import "sync"

// Phase says what is being done to a piece of an image.
type Phase string

// The phases that events tell of.
const (
	Resolving   Phase = "resolving"   // asking the registry what a name means
	Waiting     Phase = "waiting"     // a layer has not started yet
	Exists      Phase = "exists"      // a layer is there already
	Downloading Phase = "downloading" // Current of Total bytes
	Retrying    Phase = "retrying"    // after a passing error, told in Note
	Downloaded  Phase = "downloaded"  // and verified
	Loading     Phase = "loading"     // reading an archive or layout
	Converting  Phase = "converting"  // layers become a root file system
	Done        Phase = "done"
)

// Event is one step of progress.
type Event struct {
	Phase   Phase
	ID      string // the layer's digest, or the image's name or ID
	Current int64  // bytes
	Total   int64  // bytes; 0 when not known
	Note    string
}

// Progress is told of events, one at a time. It must not block for long.
type Progress func(Event)

// serial makes p safe to call from several goroutines, nil included.
func serial(p Progress) Progress {
	if p == nil {
		return func(Event) {}
	}
	var mu sync.Mutex
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		p(e)
	}
}
