package client

import (
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/router"
)

// Outcomes of an operation that did not succeed; match them with errors.Is. All but ErrAmbiguous are definite: nothing
// was written and nothing will be.
var (
	// ErrNotFound is returned by Get for an absent key.
	ErrNotFound = errors.New("not found")
	// ErrOutOfRange says that a key lies outside the bounds of the Range; nothing was sent.
	ErrOutOfRange = errors.New("key outside the range")
	// ErrConflict says that a condition of CompareAndSwap, CompareAndDelete or Batch did not hold; see ConflictError.
	ErrConflict = errors.New("condition does not hold")
	// ErrClosed says that the DB was closed. In-flight writes that Close cuts off are ErrAmbiguous as well.
	ErrClosed = router.ErrClosed
	// ErrCrossShard says that the keys of one Batch lie in more than one shard.
	ErrCrossShard = router.ErrCrossShard
	// ErrUnavailable says that no replica could serve the operation before the deadline.
	ErrUnavailable = router.ErrUnavailable
	// ErrOverloaded says that the cluster was too busy to take the operation before the deadline.
	ErrOverloaded = router.ErrOverloaded
	// ErrDiskFull says that the disk of the node that leads the shard was short of space until the deadline. Deletes and
	// reads are still served.
	ErrDiskFull = router.ErrDiskFull
	// ErrAmbiguous says that a write may or may not have happened, now or later. Read before writing again.
	ErrAmbiguous = router.ErrAmbiguous
	// ErrInvalid says that the operation breaks a limit or rule that the text names; no retry can help.
	ErrInvalid = router.ErrInvalid
)

// OpError is what every failed operation on a Range returns; get at it with errors.As.
type OpError struct {
	Op       string // get, put, delete, scan, ...
	Key      []byte // user key; the first one of an operation on several
	Shard    uint64 // 0 if none was found
	Node     uint64 // the last node asked, 0 if none was
	Attempts int    // how often the operation was sent
	Elapsed  time.Duration
	Err      error
}

// Error names the operation, the key, where it failed and why.
func (e *OpError) Error() string {
	s := fmt.Sprintf("%s %q", e.Op, shorten(e.Key))
	if e.Shard != 0 {
		s += fmt.Sprintf(" on shard s%d", e.Shard)
	}
	if e.Node != 0 {
		s += fmt.Sprintf(" at node n%d", e.Node)
	}
	if e.Attempts > 0 {
		s += fmt.Sprintf(" (%d attempts in %s)", e.Attempts, e.Elapsed.Round(100*time.Microsecond))
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *OpError) Unwrap() error { return e.Err }

// ConflictError says which condition did not hold. It matches ErrConflict.
type ConflictError struct {
	Step    int    // index of the condition among the steps of a Batch; 0 otherwise
	Version uint64 // the key's current version, 0 if it is absent
}

// Error names the step and the version found.
func (e *ConflictError) Error() string {
	if e.Version == 0 {
		return fmt.Sprintf("%s: step %d: the key is absent", ErrConflict, e.Step)
	}
	return fmt.Sprintf("%s: step %d: the key has version %d", ErrConflict, e.Step, e.Version)
}

// Is makes errors.Is(err, ErrConflict) true.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// shorten keeps error texts readable for keys of up to 4 KiB.
func shorten(k []byte) []byte {
	const most = 64
	if len(k) <= most {
		return k
	}
	return append(k[:most:most], "..."...)
}
