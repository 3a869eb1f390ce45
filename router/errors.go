package router

import (
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Outcomes of an operation that did not succeed. All but ErrAmbiguous are definite: nothing was written and nothing
// will be.
var (
	// ErrUnavailable says that no replica could serve the operation before the deadline.
	ErrUnavailable = errors.New("unavailable")
	// ErrOverloaded says that the cluster, or the queue towards a node, was full until the deadline.
	ErrOverloaded = errors.New("overloaded")
	// ErrDiskFull says that the disk of the shard's leader was short of space until the deadline. Deletes and reads are
	// still served.
	ErrDiskFull = errors.New("disk full")
	// ErrAmbiguous says that a write may or may not have happened, now or later.
	ErrAmbiguous = errors.New("outcome unknown")
	// ErrCrossShard says that the keys of one atomic operation lie in more than one shard.
	ErrCrossShard = errors.New("keys lie in more than one shard")
	// ErrInvalid says that no retry can make the operation valid; the text names what to mend.
	ErrInvalid = wire.ErrInvalid
)

// Errors of a Sender.
var (
	// ErrNotSent marks a transport error after which no byte of the operation has left or ever will.
	ErrNotSent = errors.New("not sent")
	// ErrQueueFull marks an ErrNotSent that is due to a full queue towards the node.
	ErrQueueFull = errors.New("queue to the node is full")
	// ErrBroken marks a stream that ended while the operation was in flight.
	ErrBroken = errors.New("stream broke with the operation in flight")
	// ErrClosed marks a use after Close.
	ErrClosed = errors.New("closed")
)

// Error is what every failed operation returns. errors.Is matches Kind, one of the outcomes above, and whatever Reason
// wraps.
type Error struct {
	Op       wire.OpCode
	Key      []byte // routing key the operation was routed by
	Shard    base.ShardID
	Store    base.StoreID // the last node asked, 0 if none was
	Attempts int
	Elapsed  time.Duration
	Kind     error
	Reason   error // the last thing that went wrong; may be nil
}

// Error names the operation, where it failed and why.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s %q", e.Op, e.Key)
	if e.Shard != 0 {
		s += fmt.Sprintf(" on %s", e.Shard)
	}
	if e.Store != 0 {
		s += fmt.Sprintf(" at %s", e.Store)
	}
	if e.Attempts > 0 {
		s += fmt.Sprintf(" (%d attempts, %s)", e.Attempts, e.Elapsed.Round(time.Millisecond))
	}
	s += ": " + e.Kind.Error()
	if e.Reason != nil && e.Reason != e.Kind {
		s += ": " + e.Reason.Error()
	}
	return s
}

// Unwrap returns the outcome and the reason.
func (e *Error) Unwrap() []error {
	if e.Reason == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Reason}
}
