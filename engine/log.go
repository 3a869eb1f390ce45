package engine

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// Log is the raft log of one replica; it implements raft.Storage. It belongs to the replica's worker, except for Bytes
// and Bounds, which anybody may call. First and last index live in memory, so that no read ever seeks over the
// tombstones of truncated entries.
//
// INVARIANT(log): entries first..last exist without a gap, first-1 is the truncated index, applied >= first-1.
type Log struct {
	e     *Engine
	shard base.ShardID
	ring  ring

	first, last atomic.Uint64 // bounds; last == first-1 for an empty log
	bytes       atomic.Uint64

	worker struct {
		initial   *initialState // nil once raft has it
		truncTerm uint64
		lastTerm  uint64
		sizes     []uint32 // of the entries that this life wrote: the last len(sizes) ones
		dropped   int      // sizes in the array in front of those, at most
		oldBytes  uint64   // estimate for those before them
		snapshot  func() (raftpb.SnapshotMetadata, bool)
	}
}

var _ raft.Storage = (*Log)(nil)

// initialState is what InitialState answers.
type initialState struct {
	hard raftpb.HardState // as loaded
	conf raftpb.ConfState
}

// pointDeletes is up to how many entries are truncated one by one. A point tombstone costs 0.12-0.6 us to write, and
// nobody reads over it. A range tombstone costs next to nothing to write, but the first iterator after it, on whatever
// keys, sorts all those of its memtable again: 0.05-0.1 us for each that is there. The two meet between 100 and 400
// entries; docs/decisions/0008-truncation-deletes.md has the figures.
const pointDeletes = 256

// OpenLog opens the log of a replica that LoadReplicas has returned, or that has just been created. It costs a few
// seeks whatever the log's length. It fails with ExitCorrupt if the log ends before what is applied or committed. The
// log of an uninitialised replica is empty: its first index is 1, its last 0, and its configuration lists nobody.
func (e *Engine) OpenLog(st ReplicaState) (*Log, error) {
	name := base.ReplicaName(st.Shard, st.Mark.ReplicaID)
	l := &Log{e: e, shard: st.Shard}
	l.ring.cache = &e.cache
	first := st.Truncated.Index + 1
	last, term, counted, err := e.lastEntry(st.Shard, first)
	if err != nil {
		return nil, classify(e.opts.Dir, fmt.Errorf("open log of %s: %w", name, err))
	}
	if last > 0 && st.Desc == nil {
		return nil, &OpenError{Code: ExitCorrupt, Dir: e.opts.Dir, Err: fmt.Errorf(
			"log of %s, which is uninitialised, has entry %d: %w", name, last, ErrCorrupt)}
	}
	if last == 0 {
		last, term = st.Truncated.Index, st.Truncated.Term
	}
	hard := st.Hard
	hard.Commit = max(hard.Commit, st.Applied.Index) // rule R3: applied is written without a HardState
	if hard.Commit > last {
		return nil, &OpenError{Code: ExitCorrupt, Dir: e.opts.Dir, Err: fmt.Errorf(
			"log of %s ends at %d, but %d is committed and %d applied: %w",
			name, last, st.Hard.Commit, st.Applied.Index, ErrCorrupt)}
	}
	l.first.Store(first)
	l.last.Store(last)
	w := &l.worker
	w.initial = &initialState{hard, st.Applied.Conf}
	w.truncTerm, w.lastTerm = st.Truncated.Term, term
	if last >= first {
		if counted == 0 {
			counted, err = e.db.EstimateDiskUsage(logKey(st.Shard, first), logKey(st.Shard, last+1))
			if err != nil {
				return nil, classify(e.opts.Dir, fmt.Errorf("size of the log of %s: %w", name, readError(err)))
			}
		}
		w.oldBytes = max(counted, (last-first+1)*entryHeaderLen)
		l.bytes.Store(w.oldBytes)
	}
	return l, nil
}

// countedEntries is up to how many entries a log's bytes are counted one by one when it is opened. Pebble's estimate reads
// and decodes the properties of every table that the log lies in, once for each log.
const countedEntries = 32

// lastEntry finds the last log entry at or above first by a reverse seek; 0 if there is none. bytes is the size of all that
// there are, 0 if they are too many to be counted.
func (e *Engine) lastEntry(shard base.ShardID, first uint64) (index, term, bytes uint64, err error) {
	it, err := e.db.NewIter(&pebble.IterOptions{
		LowerBound: logKey(shard, first), UpperBound: stateKey(shard, raftLog+1),
	})
	if err != nil {
		return 0, 0, 0, readError(err)
	}
	defer func() { err = errors.Join(err, readError(it.Close())) }()
	if !it.Last() {
		return 0, 0, 0, readError(it.Error())
	}
	if len(it.Key()) != logKeyLen {
		return 0, 0, 0, fmt.Errorf("log key %x: %w", it.Key(), ErrCorrupt)
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return 0, 0, 0, readError(err)
	}
	ent, err := decodeEntry(u64at(it.Key(), stateKeyLen), v)
	if err != nil {
		return 0, 0, 0, err
	}
	for more := ent.Index-first < countedEntries; more; more = it.Prev() {
		v := it.LazyValue()
		bytes += uint64(v.Len())
	}
	return ent.Index, ent.Term, bytes, nil
}

// Close drops the log's entries from the cache. The log must not be used afterwards.
func (l *Log) Close() { l.ring.truncate(math.MaxUint64) }

// Uncache drops the log's entries from the cache: for a log of which nobody needs any soon. They are read from Pebble then.
func (l *Log) Uncache() { l.ring.truncate(math.MaxUint64) }

// Append adds entries to the log and to the batch, whose commit makes them durable. They are consecutive and start at
// or before last+1; from their first index on they replace what the log has, and entries of the old log beyond the new
// end are deleted in the same batch. Entry data is kept, not copied: it must not change any more.
func (l *Log) Append(b *Batch, ents []raftpb.Entry) {
	first, last := l.first.Load(), l.last.Load()
	if len(ents) > 0 && ents[0].Index < first { // already truncated: those are applied and cannot differ
		ents = ents[min(uint64(len(ents)), first-ents[0].Index):]
	}
	if len(ents) == 0 {
		return
	}
	if ents[0].Index > last+1 {
		b.invalid(fmt.Errorf("append to log of %s: entry %d does not follow %d", l.shard, ents[0].Index, last))
		return
	}
	size := l.bytes.Load() - l.cut(ents[0].Index)
	for i := range ents {
		e := &ents[i]
		k, v := b.set(logKeyLen, entryHeaderLen+len(e.Data))
		putLogKey(k, l.shard, e.Index)
		putEntryHeader(v, e.Type, e.Term)
		copy(v[entryHeaderLen:], e.Data)
		l.worker.sizes = append(l.worker.sizes, uint32(len(v)))
		size += uint64(len(v))
	}
	newLast := ents[len(ents)-1].Index
	var key [logKeyLen]byte
	for i := newLast + 1; i <= last; i++ {
		putLogKey(key[:], l.shard, i)
		b.deleteLocal(key[:])
	}
	l.worker.lastTerm = ents[len(ents)-1].Term
	l.last.Store(newLast)
	l.bytes.Store(size)
	l.ring.append(ents)
}

// cut forgets the sizes of the entries from index to the end and returns their sum.
func (l *Log) cut(index uint64) (freed uint64) {
	w := &l.worker
	last := l.last.Load()
	if index > last {
		return 0
	}
	n := last - index + 1
	known := min(n, uint64(len(w.sizes)))
	for _, s := range w.sizes[uint64(len(w.sizes))-known:] {
		freed += uint64(s)
	}
	w.sizes = w.sizes[:uint64(len(w.sizes))-known]
	l.shrinkSizes()
	return freed + l.cutOld(n-known, index-l.first.Load()+n-known)
}

// shrinkSizes gives back the array of sizes once most of it is unused: a log that was long keeps no memory for it.
func (l *Log) shrinkSizes() {
	const spare = 1024 // below which it is not worth the copy
	w := &l.worker
	if n := len(w.sizes); w.dropped+cap(w.sizes) > 4*n+spare {
		w.sizes, w.dropped = append(make([]uint32, 0, n+n/4), w.sizes...), 0
	}
}

// cutOld takes n of count entries of unknown size off the estimate.
func (l *Log) cutOld(n, count uint64) (freed uint64) {
	if n == 0 || count == 0 {
		return 0
	}
	freed = uint64(float64(l.worker.oldBytes) * float64(n) / float64(count))
	if n == count {
		freed = l.worker.oldBytes
	}
	l.worker.oldBytes -= freed
	return freed
}

// Truncate deletes the entries up to and including index to, whose term is given, and stores the TruncatedState with
// the configuration at that index, all in the batch. It needs no sync of its own: the log's order puts it behind the
// applied state that allows it (rule L4: to is never above what is applied, in this batch or an earlier one). Nothing
// happens if to is truncated already.
func (l *Log) Truncate(b *Batch, to, term uint64, conf raftpb.ConfState) {
	first, last := l.first.Load(), l.last.Load()
	if to < first {
		return
	}
	if to > last {
		b.invalid(fmt.Errorf("truncate log of %s: %d is beyond its end %d", l.shard, to, last))
		return
	}
	if to-first < pointDeletes {
		var key [logKeyLen]byte
		for i := first; i <= to; i++ {
			putLogKey(key[:], l.shard, i)
			b.deleteLocal(key[:])
		}
	} else {
		b.deleteRange(logKey(l.shard, first), logKey(l.shard, to+1))
	}
	b.SetTruncated(l.shard, TruncatedState{Index: to, Term: term, Conf: conf})

	w := &l.worker
	old := last - first + 1 - uint64(len(w.sizes))
	cutOld := min(old, to-first+1)
	freed := l.cutOld(cutOld, old)
	known := to - first + 1 - cutOld
	for _, s := range w.sizes[:known] {
		freed += uint64(s)
	}
	w.sizes, w.dropped = w.sizes[known:], w.dropped+int(known)
	l.shrinkSizes()
	w.truncTerm = term
	l.bytes.Store(l.bytes.Load() - freed)
	l.first.Store(to + 1)
	l.ring.truncate(to)
}

// Reset makes the log what Install has left on disk: empty, at st.Truncated. The next entry is the one after it. Like
// Append it is the worker's to call, while no Ready of the replica is in flight.
func (l *Log) Reset(st ReplicaState) {
	l.ring.truncate(math.MaxUint64)
	w := &l.worker
	w.initial = &initialState{st.Hard, st.Applied.Conf}
	w.initial.hard.Commit = max(st.Hard.Commit, st.Applied.Index)
	w.truncTerm, w.lastTerm = st.Truncated.Term, st.Truncated.Term
	w.sizes, w.dropped, w.oldBytes = nil, 0, 0
	l.first.Store(st.Truncated.Index + 1)
	l.last.Store(st.Truncated.Index)
	l.bytes.Store(0)
}

// SetSnapshot sets what Storage.Snapshot answers: the position of the snapshot that would be sent now, or false if none
// can be. f is called on the worker, and must return at once (rule R10). Until it is set there is none.
func (l *Log) SetSnapshot(f func() (raftpb.SnapshotMetadata, bool)) { l.worker.snapshot = f }

// Bytes returns the stored size of the log's entries. For entries that an earlier life of the process wrote it is an
// estimate. Anybody may call it.
func (l *Log) Bytes() uint64 { return l.bytes.Load() }

// Bounds returns the first and last index; last is first-1 for an empty log. Anybody may call it; the two may be from
// either side of an append or truncation under way.
func (l *Log) Bounds() (first, last uint64) { return l.first.Load(), l.last.Load() }

// InitialState implements raft.Storage: the HardState as loaded, its commit at least what is applied (rule R3), and the
// configuration at the applied index. It is for the start of raft, and fails after Started.
func (l *Log) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	s := l.worker.initial
	if s == nil {
		return raftpb.HardState{}, raftpb.ConfState{}, fmt.Errorf("log of %s: raft has started from it", l.shard)
	}
	return s.hard, s.conf, nil
}

// Started says that raft has been started, so that nobody asks for the InitialState any more: it is forgotten.
func (l *Log) Started() { l.worker.initial = nil }

// FirstIndex implements raft.Storage.
func (l *Log) FirstIndex() (uint64, error) { return l.first.Load(), nil }

// LastIndex implements raft.Storage.
func (l *Log) LastIndex() (uint64, error) { return l.last.Load(), nil }

// Snapshot implements raft.Storage: metadata only, from what SetSnapshot has set. It never waits (rule R10): the
// snapshotter sends the data.
func (l *Log) Snapshot() (raftpb.Snapshot, error) {
	if f := l.worker.snapshot; f != nil {
		// Raft panics at a snapshot without an index.
		if m, ok := f(); ok && m.Index > 0 {
			return raftpb.Snapshot{Metadata: m}, nil
		}
	}
	return raftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
}

// Term implements raft.Storage.
func (l *Log) Term(index uint64) (uint64, error) {
	first, last := l.first.Load(), l.last.Load()
	switch {
	case index+1 < first:
		return 0, raft.ErrCompacted
	case index+1 == first:
		return l.worker.truncTerm, nil
	case index > last:
		return 0, raft.ErrUnavailable
	case index == last:
		return l.worker.lastTerm, nil
	}
	if t, ok := l.ring.term(index); ok {
		return t, nil
	}
	var key [logKeyLen]byte
	putLogKey(key[:], l.shard, index)
	v, closer, err := l.e.db.Get(key[:])
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, fmt.Errorf("log of %s: entry %d in [%d, %d] is missing: %w", l.shard, index, first, last, ErrCorrupt)
	}
	if err != nil {
		return 0, fmt.Errorf("term of entry %d of %s: %w", index, l.shard, readError(err))
	}
	ent, err := decodeEntry(index, v)
	return ent.Term, errors.Join(err, closeGet(closer))
}

// Entries implements raft.Storage: the entries of [lo, hi), at least one, and no more than maxSize bytes of raft's
// encoding otherwise. The result is shared with the cache: read only. Entries that are not in the cache are read from
// Pebble and not added to it: a follower that catches up must not push out what the others need.
func (l *Log) Entries(lo, hi, maxSize uint64) ([]raftpb.Entry, error) {
	if lo < l.first.Load() {
		return nil, raft.ErrCompacted
	}
	if lo >= hi || hi > l.last.Load()+1 {
		return nil, raft.ErrUnavailable
	}
	cached, from := l.ring.entries(lo, hi)
	if from == lo {
		l.e.metrics.cacheHits.Inc()
		return limitEntries(cached, maxSize), nil
	}
	l.e.metrics.cacheMisses.Inc()
	ents, size, err := l.read(lo, from, maxSize)
	if err != nil {
		return nil, fmt.Errorf("entries [%d, %d) of %s: %w", lo, hi, l.shard, err)
	}
	if uint64(len(ents)) < from-lo {
		return ents, nil // the limit is reached
	}
	for i := range cached {
		if size += uint64(cached[i].Size()); size > maxSize {
			break
		}
		ents = append(ents, cached[i])
	}
	return ents, nil
}

// read takes entries from Pebble and returns their size in raft's encoding.
func (l *Log) read(lo, hi, maxSize uint64) (ents []raftpb.Entry, size uint64, err error) {
	it, err := l.e.db.NewIter(&pebble.IterOptions{LowerBound: logKey(l.shard, lo), UpperBound: logKey(l.shard, hi)})
	if err != nil {
		return nil, 0, readError(err)
	}
	defer func() { err = errors.Join(err, readError(it.Close())) }()
	next := lo
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, 0, readError(err)
		}
		if index := u64at(it.Key(), stateKeyLen); index != next {
			break // a hole: reported below
		}
		ent, err := decodeEntry(next, append(make([]byte, 0, len(v)), v...))
		if err != nil {
			return nil, 0, err
		}
		l.e.metrics.cacheMissBytes.Add(float64(len(v)))
		size += uint64(ent.Size())
		if len(ents) > 0 && size > maxSize {
			return ents, size, nil
		}
		ents = append(ents, ent)
		next++
	}
	if err := it.Error(); err != nil {
		return nil, 0, readError(err)
	}
	if next != hi {
		return nil, 0, fmt.Errorf("entry %d is missing: %w", next, ErrCorrupt)
	}
	return ents, size, nil
}

// limitEntries cuts at maxSize bytes of raft's encoding, but never below one entry.
func limitEntries(ents []raftpb.Entry, maxSize uint64) []raftpb.Entry {
	if maxSize == math.MaxUint64 {
		return ents
	}
	var size uint64
	for i := range ents {
		if size += uint64(ents[i].Size()); size > maxSize && i > 0 {
			return ents[:i:i]
		}
	}
	return ents
}
