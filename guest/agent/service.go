package agent

import (
	"context"
	"errors"
	"net/netip"
	"runtime/debug"
	"sync"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	api "manis/api/agent"
	"manis/api/wire"
)

// maxContainers bounds the containers of one sandbox.
const maxContainers = 512

// service answers the host's requests.
type service struct {
	version string
	port    *port
	guest   *wire.Server // of the present session
	readyNS int64
	// protector is asked before every request; nil: everything is served.
	protector Guard

	mu         sync.Mutex
	isSetUp    bool
	shares     map[string]bool // that are mounted, by tag
	leaving    bool            // the session ends because the host detaches
	mark       []byte          // that of the request
	fresh      bool            // a new session has not set the machine up yet
	network    *api.Network    // as it was set up
	containers map[string]*container
	// memoryBytes is what the kernel had to give away when the machine had its first size.
	memoryBytes uint64
	resolvers   map[netip.Addr]bool // name servers that are served
}

func newService(version string, port *port) *service {
	return &service{
		version: version, port: port,
		containers: make(map[string]*container), shares: make(map[string]bool), resolvers: make(map[netip.Addr]bool),
	}
}

// maxReply is the most bytes of an answer: the host ends a session with an agent that says more than
// wire.MaxAnswer, and its own front ends get the same in other words.
const maxReply = wire.MaxAnswer / 2

// intercept surrounds every request: nothing is served before Setup, and a
// panic is the failure of one request instead of the kernel's.
func (s *service) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (reply any, err error) {
	defer func() {
		if r := recover(); r != nil {
			complain("panic in %s: %v\n%s", info.FullMethod, r, debug.Stack())
			reply, err = nil, status.Errorf(codes.Internal, "the agent failed in %s: %v (please report this)", info.FullMethod, r)
		}
	}()
	if s.protector != nil {
		var request any
		reply, err = method(ctx, s.guarded(info.FullMethod, unmarshal, &request))
		if err == nil {
			s.protector.After(info.FullMethod, request, reply)
		} else if request != nil {
			s.protector.Failed(info.FullMethod, request, err)
		}
	} else {
		reply, err = method(ctx, unmarshal)
	}
	if err != nil {
		return reply, asStatus(err)
	}
	if m, ok := reply.(proto.Message); ok {
		if size := proto.Size(m); size > maxReply {
			return nil, status.Errorf(codes.ResourceExhausted, "the answer to %s has %d bytes, more than %d", info.FullMethod, size, maxReply)
		}
	}
	return reply, nil
}

// failure is an error with the code that the host acts upon.
type failure struct {
	code codes.Code
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// fail gives err a code.
func fail(code codes.Code, err error) error { return &failure{code, err} }

// asStatus turns an error into what crosses the wire.
func asStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	var f *failure
	switch {
	case errors.As(err, &f):
		code = f.code
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		code = codes.ResourceExhausted
	}
	return status.Error(code, err.Error())
}

// guard runs f on a goroutine of its own whose panic does not end the machine.
func guard(what string, f func()) {
	go func() {
		defer func() {
			if r := recover(); r != nil {
				complain("panic in %s: %v\n%s", what, r, debug.Stack())
			}
		}()
		f()
	}()
}

// container returns a container by id.
func (s *service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isSetUp {
		return nil, errNotSetUp
	}
	c := s.containers[id]
	if c == nil {
		return nil, fail(codes.NotFound, errors.New("no such container: "+id))
	}
	return c, nil
}

var errNotSetUp = fail(codes.FailedPrecondition, errors.New("the sandbox is not set up"))
