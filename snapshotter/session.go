package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// session is one snapshot at the receiver. It outlives its streams: a broken one leaves it behind, detached, for the
// sender to come back to by its id.
type session struct {
	id    [16]byte
	shard base.ShardID
	from  base.StoreID
	to    base.ReplicaID
	term  uint64 // of the sending leader
	meter *meter

	// Guarded by inbox.mu.
	owner    *recvStream   // the stream that works on it; nil: detached
	detached chan struct{} // closed when owner has let go
	left     time.Duration // boot time at which the last owner did
	stage    stage
	finished chan struct{} // closed at the end
	result   error         // nil: installed, or not needed

	// The owner's; nobody's once finished.
	meta     []byte // as it came
	state    *engine.SnapshotMeta
	staging  *engine.Staging // nil before the first chunk
	bytes    uint64          // of the staged chunks, as sent
	reserved uint64          // bytes held in the admission
	checked  time.Duration   // spent on verifying and writing chunks
	resumes  int
}

type stage uint8

const (
	receiving stage = iota
	installing
	finished // kept for a while, for a sender that missed the answer
)

// inbox knows the snapshots that are being received: by id, and for each shard the latest one. Two of one shard would
// fight for the same replica, so the leader of the higher term wins, and of one leader the later request.
type inbox struct {
	mu struct {
		sync.Mutex
		byID    map[[16]byte]*session
		byShard map[base.ShardID]*session
	}
}

func newInbox() *inbox {
	b := &inbox{}
	b.mu.byID, b.mu.byShard = map[[16]byte]*session{}, map[base.ShardID]*session{}
	return b
}

// attach finds or makes the session of a snapshot and has r own it, waiting until an earlier stream has let go. A session
// that has finished is returned as it is. It fails with a *refusal or the context's cause; drop is called for a session
// that had to make room.
func (b *inbox) attach(ctx context.Context, r *recvStream, fresh *session, drop func(*session, error)) (*session, error) {
	for {
		sn, wait, evicted, err := b.tryAttach(r, fresh)
		if evicted != nil {
			drop(evicted, ErrReplaced)
		}
		if sn != nil || err != nil {
			return sn, err
		}
		if wait == nil {
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryAttach makes one step of attach: done, failed, or something to wait for or to remove first.
func (b *inbox) tryAttach(r *recvStream, fresh *session) (sn *session, wait <-chan struct{}, evicted *session, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sn = b.mu.byID[fresh.id]
	switch {
	case sn != nil && sn.shard != fresh.shard:
		return nil, nil, nil, &refusal{code: declinedInvalid, reason: "the snapshot's id belongs to another shard"}
	case sn != nil && sn.stage == finished:
		return sn, nil, nil, nil
	case sn != nil && sn.stage == installing:
		return nil, sn.finished, nil, nil
	case sn != nil && sn.owner != nil:
		sn.owner.cancel(errTakenOver)
		return nil, sn.detached, nil, nil
	case sn != nil:
		sn.resumes++
		b.ownLocked(sn, r)
		return sn, nil, nil, nil
	}
	old := b.mu.byShard[fresh.shard]
	switch {
	case old == nil || old.stage == finished:
	case old.stage == installing:
		return nil, nil, nil, &refusal{code: declinedBusy, wait: retrySoon,
			reason: "another snapshot of the shard is being installed"}
	case old.term > fresh.term || old.term == fresh.term && old.to > fresh.to:
		return nil, nil, nil, &refusal{code: declinedOlder, reason: "a snapshot of a later leader is being received"}
	case old.owner != nil:
		old.owner.cancel(ErrReplaced)
		return nil, old.detached, nil, nil
	default:
		b.removeLocked(old)
		return nil, nil, old, nil
	}
	b.mu.byID[fresh.id], b.mu.byShard[fresh.shard] = fresh, fresh
	b.ownLocked(fresh, r)
	return fresh, nil, nil, nil
}

func (b *inbox) ownLocked(sn *session, r *recvStream) {
	sn.owner, sn.detached = r, make(chan struct{})
	if sn.finished == nil {
		sn.finished = make(chan struct{})
	}
}

func (b *inbox) removeLocked(sn *session) {
	delete(b.mu.byID, sn.id)
	if b.mu.byShard[sn.shard] == sn {
		delete(b.mu.byShard, sn.shard)
	}
}

// detach ends a stream's ownership. The session waits for the next one, unless there is nothing to keep: it was never
// granted, or it was declined for now and may be asked for again.
func (b *inbox) detach(sn *session, now time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var no *refusal
	again := errors.As(sn.result, &no) && no.wait > 0
	if again || sn.stage != finished && sn.reserved == 0 {
		b.removeLocked(sn)
	}
	sn.owner, sn.left = nil, now
	close(sn.detached)
}

// install marks the session: nobody takes it over from here on.
func (b *inbox) install(sn *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sn.stage = installing
}

// finish records the end, for the owner and for a sender that asks again.
func (b *inbox) finish(sn *session, result error, now time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sn.stage, sn.result, sn.left = finished, result, now
	close(sn.finished)
}

// expired takes out the sessions that nobody has worked on since a boot time and returns those that are not finished.
func (b *inbox) expired(before time.Duration) (left []*session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, sn := range b.mu.byID {
		if sn.owner != nil || sn.left > before {
			continue
		}
		b.removeLocked(sn)
		if sn.stage != finished {
			left = append(left, sn)
		}
	}
	return left
}

// clear takes out all sessions and returns those that are not finished. No stream may be left.
func (b *inbox) clear() (left []*session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, sn := range b.mu.byID {
		b.removeLocked(sn)
		if sn.stage != finished {
			left = append(left, sn)
		}
	}
	return left
}

func (b *inbox) meters() []*meter {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*meter
	for _, sn := range b.mu.byID {
		if sn.stage != finished {
			out = append(out, sn.meter)
		}
	}
	return out
}

// same reports whether a reserve that resumes speaks of the state that is staged.
func (sn *session) same(meta []byte) bool { return bytes.Equal(sn.meta, meta) }
