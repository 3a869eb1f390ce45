package shard

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Size. Measure: what Pebble's tables hold of the range, and what was written to memtables that are not flushed. Count:
// bytes written since are added to that, so the size is never far too low. Measure again: once what was written makes
// up a sixteenth, on the apply worker that wrote it; and, when somebody asks, after deletions and some time after the
// last writes, since compaction goes on in their wake. How often halves each time, down to once an hour. Nothing walks
// over the shards to measure them. Sizes are of this store's disk and never replicated (S4).
//
// Refuse: a shard that was not split in time must not outgrow what can be moved. At twice the size at which shards split
// its leader refuses writes that add bytes; deletes pass. The refusal ends with a descriptor of less range, or with data
// that is gone from the disk: a shard that refuses is measured again each second.

const (
	// sizeFraction is which part of the size may be written before it is measured again.
	sizeFraction = 16
	// remeasureFirst and remeasureLast bound the time between looks at a shard that nobody writes to.
	remeasureFirst = 10 * time.Second
	remeasureLast  = time.Hour
	// countedKeys is the most keys for which a shard that seems too large is counted, some 50 ms: with more keys values are
	// small and stand in the blocks of the tables, which then tell them apart.
	countedKeys = 64 << 10
	// fullAge is how old the measurement may be that a write is refused on.
	fullAge = time.Second
)

// shardSize is what a replica knows of the bytes of its data.
type shardSize struct {
	measured atomic.Uint64 // at the last measurement: tables and memtables
	tables   atomic.Uint64 // of it in tables
	written  atomic.Uint64 // since
	at       atomic.Int64  // of the last measurement, on Clock.Boot; 0 never
	due      atomic.Int64  // when to measure again if somebody asks
	stale    atomic.Bool   // deletions, or another range: what was measured may be far too much
	later    bool          // in Store.news.later; belongs to the caller of Changed
	desc     atomic.Pointer[base.Descriptor]

	measuring sync.Mutex
	wait      time.Duration // until due; guarded by measuring

	mem struct { // bytes in memtables, the two youngest apart
		sync.Mutex
		now, old memBytes
	}
}

// memBytes were written when the engine was at a flush epoch.
type memBytes struct{ epoch, bytes uint64 }

// wrote counts bytes that went into the memtable of an epoch.
func (s *shardSize) wrote(n uint64, e engine.FlushEpoch) {
	s.written.Add(n)
	m := &s.mem
	m.Lock()
	defer m.Unlock()
	if m.now.epoch != e.Now {
		if m.old.epoch < e.Flushed {
			m.old.bytes = 0
		}
		if m.now.epoch >= e.Flushed {
			m.old = memBytes{m.now.epoch, m.old.bytes + m.now.bytes}
		}
		m.now = memBytes{epoch: e.Now}
	}
	m.now.bytes += n
}

// unflushed returns the bytes that no table has yet.
func (s *shardSize) unflushed(e engine.FlushEpoch) (n uint64) {
	m := &s.mem
	m.Lock()
	defer m.Unlock()
	for _, b := range [...]memBytes{m.now, m.old} {
		if b.epoch >= e.Flushed {
			n += b.bytes
		}
	}
	return n
}

// takeUnflushed adds a part of what another shard has in memtables: with the range it comes here.
func (s *shardSize) takeUnflushed(from *shardSize, part float64, e engine.FlushEpoch) {
	s.wrote(uint64(float64(from.unflushed(e))*part), e)
}

// shareUnflushed keeps a part of what is in memtables.
func (s *shardSize) shareUnflushed(part float64) {
	m := &s.mem
	m.Lock()
	defer m.Unlock()
	m.now.bytes = uint64(float64(m.now.bytes) * part)
	m.old.bytes = uint64(float64(m.old.bytes) * part)
}

// bytes is the size as far as it is known without looking.
func (s *shardSize) bytes() uint64 { return s.measured.Load() + s.written.Load() }

// age is how long ago it was measured.
func (s *shardSize) age(now time.Duration) time.Duration { return now - time.Duration(s.at.Load()) }

// measure looks at the engine's tables; if somebody else is about to, it leaves it to them.
func (r *replica) measure(now time.Duration) {
	s := &r.size
	if !s.measuring.TryLock() {
		return
	}
	defer s.measuring.Unlock()
	d := r.desc.Load()
	if s.stale.Swap(false) || s.written.Load() > 0 || s.wait == 0 {
		s.wait = remeasureFirst
	} else {
		s.wait = min(2*s.wait, remeasureLast)
	}
	// Before the look: what is flushed during it may count twice, never not at all.
	epoch := r.store.engine.FlushEpoch()
	written := s.written.Load()
	mem := s.unflushed(epoch)
	tables := r.store.engine.ApproxBytes(d.Start, d.End)
	total := tables + mem
	if limit := r.store.splitLimits().Bytes; limit > 0 && total > uint64(limit) {
		// It is about to be split, or refuses writes: of few keys it is worth knowing it exactly.
		if n, whole := r.store.engine.CountBytes(d.Start, d.End, countedKeys); whole {
			total = min(total, n)
		}
	}
	s.tables.Store(tables)
	s.measured.Store(total)
	s.written.Add(-written)
	s.desc.Store(d)
	s.at.Store(max(int64(now), 1))
	s.due.Store(int64(now + s.wait))
	r.store.metrics.measures.Inc()
}

// sizeNow returns the size, measured if that is due.
func (r *replica) sizeNow(now time.Duration) (bytes uint64, age time.Duration) {
	s := &r.size
	d := r.desc.Load()
	if d == nil {
		return 0, 0
	}
	if s.at.Load() == 0 || int64(now) >= s.due.Load() || !sameRange(s.desc.Load(), d) {
		r.measure(now)
	}
	return s.bytes(), s.age(now)
}

func sameRange(a, b *base.Descriptor) bool {
	return a == b || a != nil && bytes.Equal(a.Start, b.Start) && bytes.Equal(a.End, b.End)
}

// forget makes the next question measure, as after a change of the range.
func (r *replica) forgetSize() {
	r.size.stale.Store(true)
	r.size.due.Store(0)
}

// grew counts what a committed run has changed.
func (r *replica) grew(before, after *engine.Stats, now time.Duration) {
	s := &r.size
	if after.DeleteOps != before.DeleteOps && !s.stale.Swap(true) {
		// Compaction takes the bytes away later. A measurement soon, and those after it, will see it.
		s.due.Store(min(s.due.Load(), int64(now+remeasureFirst)))
	}
	n := after.PutBytes - before.PutBytes
	if n == 0 {
		return
	}
	s.wrote(n, r.store.engine.FlushEpoch())
	if s.at.Load() != 0 && s.written.Load() >= max(s.measured.Load(), uint64(r.store.sizeUnit()))/sizeFraction {
		r.measure(now)
	}
}

// sizeUnit is a size at which it begins to matter how large a shard is.
func (s *Store) sizeUnit() int64 {
	if b := s.splitLimits().Bytes; b > 0 {
		return b / 4
	}
	return 64 << 20
}

// fullBytes returns the size at which leaders refuse writes that add bytes; 0: none.
func (l *SplitLimits) fullBytes() uint64 { return uint64(max(l.Bytes, 0)) * 2 }

// refuseForSize answers a write that adds bytes to a shard that is far larger than it should be; ok is true if it may be
// proposed. The meta shard cannot be split, and stopping it would stop what splits the others.
func (r *replica) refuseForSize(op *wire.Op, now time.Duration) (a wire.Answer, ok bool) {
	s := r.store
	limit := s.splitLimits().fullBytes()
	if r.size.bytes() < limit || limit == 0 || r.shard == base.MetaShard || !addsBytes(op) || !r.lead.Load().leads {
		return a, true
	}
	if r.size.age(now) >= fullAge || !sameRange(r.size.desc.Load(), r.desc.Load()) {
		r.measure(now)
	}
	size := r.size.bytes()
	if size < limit {
		return a, true
	}
	a = s.busy("shard-size", busySizeMs)
	a.Payload = fmt.Appendf(nil, "shard-size: %s has %d bytes, its limit is %d until it is split; deletes are served",
		r.shard, size, limit)
	return a, false
}

// busySizeMs is the back-off for a shard that is to be split first: that takes a round of the placement driver.
const busySizeMs = 250
