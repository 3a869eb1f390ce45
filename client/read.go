package client

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/router"
)

// ReadOption says from where a read is served, and how fresh it has to be. Get, MultiGet and Scan take it. Without one a
// read is served by the leader of the shard and is linearizable: it sees every write that was acknowledged before it
// began.
type ReadOption interface {
	ScanOption
	read(*router.ReadMode)
}

type readOption func(*router.ReadMode)

func (f readOption) read(m *router.ReadMode)    { f(m) }
func (f readOption) scan(o *router.ScanOptions) { f(&o.ReadMode) }

// AtFollower reads at the nearest replica (see WithLabels), at a follower rather than the leader where both are equally
// near. The read is linearizable all the same: the follower first asks the leader how far it has to have come, which
// costs a small message between the two, shared by all reads that wait for it. If the replica cannot serve, the next one
// is asked, the leader last.
//
// It takes load off leaders, and keeps values out of the links between zones. It does not help while there is no leader.
func AtFollower() ReadOption { return readOption(func(m *router.ReadMode) { m.Follower = true }) }

// Stale reads at the nearest replica and accepts a state that is up to d old: every write that was acknowledged d or
// more before the call began is seen, later ones may be missing. Two stale reads may see time go back by up to d, since
// each may be served by another replica.
//
// A replica serves such a read at once, without any message, while it can prove the bound: it keeps in mind when it last
// learned from the leader what had been committed. With d of some hundred milliseconds or more nearly all reads are
// served that way, for up to d also while there is no leader. A replica that cannot prove it asks the leader, as with
// AtFollower, and never serves anything older than d. No clocks are compared; a bound on the rate error of clocks (5 %)
// is taken off d.
//
// d is cut to whole milliseconds; less than one is refused with ErrInvalid.
func Stale(d time.Duration) ReadOption {
	return readOption(func(m *router.ReadMode) {
		m.MaxAge = d
		if d < time.Millisecond {
			m.MaxAge = -1
		}
	})
}

// readMode collects options.
func readMode(opts []ReadOption) (m router.ReadMode, err error) {
	for _, o := range opts {
		o.read(&m)
	}
	return m, checkMode(&m)
}

func checkMode(m *router.ReadMode) error {
	if m.MaxAge < 0 {
		return fmt.Errorf("stale read bounded by less than 1ms: %w", ErrInvalid)
	}
	m.MaxAge = min(m.MaxAge, math.MaxUint32*time.Millisecond)
	return nil
}

// Get returns the value of a key, or ErrNotFound.
func (r *Range) Get(ctx context.Context, key []byte, opts ...ReadOption) (Value, error) {
	const op = "get"
	if err := r.check(op, key, nil); err != nil {
		return Value{}, err
	}
	o := wire.Op{Code: wire.OpGet, Key: base.UserKey(key)}
	if len(opts) > 0 {
		m, err := readMode(opts)
		if err != nil {
			return Value{}, opError(op, key, err)
		}
		m.Set(&o)
	}
	a, trace, err := r.db.do(ctx, o)
	switch {
	case err != nil:
		return Value{}, opError(op, key, err)
	case a.Code == wire.NotFound:
		return Value{}, resultError(op, key, trace, ErrNotFound)
	}
	return Value{Bytes: a.Payload, Version: a.Arg}, nil
}

// MultiGet returns the values of keys in the order asked for; an absent key has a Value that does not Exist. The keys
// are read at the same time, whatever shards they lie in: those for one node travel in one frame, and at most 1,024 keys,
// or about 16 MiB of expected values, are on their way at once. Each key is read as if by Get, all together are not one
// snapshot. If some keys could not be read, the error is that of the first of them, and the other values are set.
func (r *Range) MultiGet(ctx context.Context, keys [][]byte, opts ...ReadOption) ([]Value, error) {
	const op = "multi-get"
	m, err := readMode(opts)
	if err != nil {
		return nil, opError(op, nil, err)
	}
	ops := make([]wire.Op, len(keys))
	for i, k := range keys {
		if err := r.check(op, k, nil); err != nil {
			return nil, err
		}
		ops[i] = wire.Op{Code: wire.OpGet, Key: base.UserKey(k)}
		m.Set(&ops[i])
	}
	if r.db.closed.Load() {
		return nil, opError(op, nil, ErrClosed)
	}
	answers, errs := r.db.router.DoMany(ctx, ops)
	values := make([]Value, len(keys))
	var first error
	for i := range answers {
		switch {
		case errs[i] != nil && first == nil:
			first = opError(op, keys[i], errs[i])
		case errs[i] == nil && answers[i].Code == wire.OK:
			values[i] = Value{Bytes: answers[i].Payload, Version: answers[i].Arg}
		}
	}
	return values, first
}
