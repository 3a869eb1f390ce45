package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Kinds of failure; match them with errors.Is.
var (
	// ErrUnreachable says that no endpoint could be reached, or none could serve the call.
	ErrUnreachable = errors.New("unreachable")
	// ErrNotFound says that what was asked for does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the state of the node or cluster does not allow the call.
	ErrConflict = errors.New("conflict")
	// ErrInvalid says that the request must be mended.
	ErrInvalid = errors.New("invalid request")
	// ErrTimedOut says that the deadline passed; the call may still take effect.
	ErrTimedOut = errors.New("timed out")
	// ErrUnsupported says that the endpoint does not know the call.
	ErrUnsupported = errors.New("not supported")
	// ErrFailed says that the node failed the call for another reason.
	ErrFailed = errors.New("failed")
)

// Error is what every failed call returns.
type Error struct {
	Call      string
	Endpoints []string // those that were asked
	Kind      error    // one of the errors above
	Code      codes.Code
	Err       error
	Remedy    string // what to do, if that is known
}

// Error names the call, the endpoints, what happened and what to do.
func (e *Error) Error() string {
	s := e.Call
	if len(e.Endpoints) > 0 {
		s += " at " + strings.Join(e.Endpoints, ", ")
	}
	s += ": " + e.Kind.Error()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// pace is how long a call may take where the context has no deadline, and whether a silent endpoint may use all of it.
type pace struct {
	limit time.Duration
	share bool // the time is divided among the endpoints that are left
}

var (
	quick = pace{limit: 10 * time.Second, share: true}
	slow  = pace{limit: time.Minute}
)

// call asks the endpoints in order until one gives an answer that is not "unavailable". All calls that go this
// way are idempotent, so asking the next one is safe; those that begin something go to one node (askOnce, StartJob).
func call[R any](ctx context.Context, c *Client, name string, p pace,
	do func(context.Context, grpc.ClientConnInterface) (R, error)) (R, error) {
	var zero R
	deadline := time.Now().Add(p.limit)
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	var asked []string
	var errs []error
	code := codes.Unavailable
	for i, ep := range c.endpoints {
		asked = append(asked, ep)
		cc, err := c.conns.get(ep)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ep, err))
			continue
		}
		limit := time.Until(deadline)
		if p.share {
			limit /= time.Duration(len(c.endpoints) - i)
		}
		try, cancel := context.WithTimeout(ctx, limit)
		r, err := do(try, cc)
		cancel()
		if err == nil {
			return r, nil
		}
		code = status.Code(err)
		if code != codes.Unavailable && code != codes.DeadlineExceeded || ctx.Err() != nil {
			return zero, newError(name, []string{ep}, code, errors.New(status.Convert(err).Message()))
		}
		errs = append(errs, fmt.Errorf("%s: %s", ep, status.Convert(err).Message()))
	}
	return zero, newError(name, asked, code, errors.Join(errs...))
}

// ask makes one call of AdminService, given as a method of its client, at the first endpoint that answers.
func ask[Q, R any](ctx context.Context, c *Client, name string, p pace,
	method func(sharddv1.AdminServiceClient, context.Context, *Q, ...grpc.CallOption) (*R, error), req *Q) (*R, error) {
	return call(ctx, c, name, p, func(ctx context.Context, cc grpc.ClientConnInterface) (*R, error) {
		return method(sharddv1.NewAdminServiceClient(cc), ctx, req)
	})
}

// askOnce is ask for a call that begins something: it is not repeated at another endpoint once a node has been given it.
// An error without an answer says that it may have begun.
func askOnce[Q, R any](ctx context.Context, c *Client, name string,
	method func(sharddv1.AdminServiceClient, context.Context, *Q, ...grpc.CallOption) (*R, error), req *Q) (*R, error) {
	at, err := c.answering(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := ask(ctx, at, name, slow, method, req)
	return resp, maybeStarted(err)
}

func newError(name string, asked []string, code codes.Code, err error) *Error {
	e := &Error{Call: name, Endpoints: asked, Kind: ErrFailed, Code: code, Err: err}
	switch code {
	case codes.Unavailable:
		e.Kind, e.Remedy = ErrUnreachable, "check the endpoints and that the nodes run and have a quorum"
	case codes.DeadlineExceeded, codes.Canceled:
		e.Kind, e.Remedy = ErrTimedOut, "try again with a longer time-out, or look at the health of the nodes"
	case codes.NotFound:
		e.Kind = ErrNotFound
	case codes.FailedPrecondition, codes.AlreadyExists, codes.Aborted:
		e.Kind = ErrConflict
	case codes.InvalidArgument, codes.OutOfRange:
		e.Kind = ErrInvalid
	case codes.Unimplemented:
		e.Kind, e.Remedy = ErrUnsupported, "the endpoint is not a shardd node, or one of an older version"
	}
	return e
}
