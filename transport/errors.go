package transport

import (
	"errors"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

var (
	// ErrStale is what Peers.Hello returns for an incarnation below the one on record.
	ErrStale = errors.New("a higher incarnation of this store is on record")
	// ErrRemoved is what Peers.Hello returns for a store that is gone for good and must not come back.
	ErrRemoved = errors.New("this store was removed from the cluster")
	// ErrOtherCluster marks a refusal by a node of another cluster.
	ErrOtherCluster = errors.New("node belongs to another cluster")
	// ErrFenced marks a refusal because another process runs, or ran later, under our store id, or because our store was
	// removed from the cluster.
	ErrFenced = errors.New("store is fenced")
	// ErrRefused marks every refused handshake.
	ErrRefused = errors.New("peer refused the connection")
)

// Refusal is the reason why a handshake was refused. The numbers are part of the protocol.
type Refusal uint16

// Reasons on the wire.
const (
	RefusedProtocol Refusal = 1 // no common protocol version, or not this protocol at all
	RefusedCluster  Refusal = 2 // the acceptor belongs to another cluster
	RefusedWrongID  Refusal = 3 // the acceptor is not the store that was dialled: its address is out of date
	RefusedStale    Refusal = 4 // a higher incarnation of the store was seen: this is an old copy of its data
	RefusedTwice    Refusal = 5 // another process with the same store id and incarnation was seen: a copied directory
	RefusedNotReady Refusal = 6 // for now: starting, stopping, or the address book could not be written
	RefusedRemoved  Refusal = 7 // the store was removed from the cluster, or given up in a recovery
)

// String returns the word used in logs and metrics.
func (r Refusal) String() string {
	switch r {
	case RefusedProtocol:
		return "protocol"
	case RefusedCluster:
		return "other-cluster"
	case RefusedWrongID:
		return "wrong-store"
	case RefusedStale:
		return "stale-incarnation"
	case RefusedTwice:
		return "duplicate-store"
	case RefusedNotReady:
		return "not-ready"
	case RefusedRemoved:
		return "removed-store"
	}
	return fmt.Sprintf("refusal(%d)", uint16(r))
}

// RefusedError is a handshake that a peer refused. errors.Is finds ErrRefused and, where they apply, ErrOtherCluster
// and ErrFenced.
type RefusedError struct {
	Peer   base.StoreID // the store that we dialled
	Addr   string       // where
	Reason Refusal
	Text   string // in the words of the peer
}

// Error names the peer and its reason.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s at %s refused the connection (%s): %s", e.Peer, e.Addr, e.Reason, e.Text)
}

// Is implements errors.Is.
func (e *RefusedError) Is(target error) bool {
	switch target {
	case ErrRefused:
		return true
	case ErrOtherCluster:
		return e.Reason == RefusedCluster
	case ErrFenced:
		return e.Reason == RefusedStale || e.Reason == RefusedTwice || e.Reason == RefusedRemoved
	}
	return false
}
