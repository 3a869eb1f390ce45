package snapshotter

import (
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Priority orders requests, at the sender as at the receiver.
type Priority uint8

// Recovery goes before Rebalance: a shard that lacks a copy is worth more than a better spread.
const (
	Rebalance Priority = iota
	Recovery
)

// String returns the lower-case word.
func (p Priority) String() string {
	if p == Recovery {
		return "recovery"
	}
	return "rebalance"
}

func parsePriority(s string) Priority {
	if s == Recovery.String() {
		return Recovery
	}
	return Rebalance // also what a later version may add
}

// Request asks for one snapshot of a local replica to be sent.
type Request struct {
	Shard    base.ShardID
	From, To base.ReplicaID // From is the local replica, a leader
	ToStore  base.StoreID
	Term     uint64 // of the leader; the receiver prefers the higher one
	Index    uint64 // the snapshot must be at this applied index or later
	Priority Priority
	// Done is called exactly once, without any lock held, with nil only after the receiver has installed the snapshot or
	// found that it needs none. It runs on a goroutine of the service (or inside Send once Run has ended), and must not
	// block. See DeclinedError, ErrReplaced, ErrStopped; engine.ErrCorrupt means that the local replica cannot be read,
	// engine.ErrNoReplica that it is gone. Everything else is worth another try later.
	Done func(error)
}

var (
	// ErrStopped ends the snapshots of a service that stops.
	ErrStopped = errors.New("the snapshot service has stopped")
	// ErrReplaced ends a snapshot for whose shard and target replica another one was requested.
	ErrReplaced = errors.New("replaced by a later snapshot to the same replica")
	// ErrTimeout ends a snapshot that took longer than Timeouts allow; the text says which.
	ErrTimeout = errors.New("snapshot timed out")
	// ErrStale ends a snapshot whose replica is not what the request says: the view is older than the index asked for, or
	// its descriptor does not list the target.
	ErrStale = errors.New("the request does not fit the replica's state")
)

// DeclinedError says that the receiver does not take a snapshot.
type DeclinedError struct {
	Store  base.StoreID // the receiver
	Reason string
	Wait   time.Duration // when to ask again; 0: not for the same state
}

// Error names the store and the reason.
func (e *DeclinedError) Error() string {
	if e.Wait > 0 {
		return fmt.Sprintf("%s declined the snapshot: %s; ask again in %s", e.Store, e.Reason, e.Wait)
	}
	return fmt.Sprintf("%s declined the snapshot: %s", e.Store, e.Reason)
}

// Declined returns reason and wait, as a Target's errors do.
func (e *DeclinedError) Declined() (reason string, wait time.Duration) { return e.Reason, e.Wait }

// declined is what a Target's refusal looks like.
type declined interface {
	Declined() (reason string, wait time.Duration)
}
