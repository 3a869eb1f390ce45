package shard

import (
	"math"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// Log compaction. Every replica decides by itself, on its ticks (L4). Look: is the log over its budget? Bound: below
// what is applied, snapshots in flight and followers that the log feeds more cheaply than a snapshot. Cut: down to half
// of the budget, so that one truncation pays for many entries. The deletes of a pass go into one batch, committed
// without a sync: the log of the engine orders them behind the applied state that allows them. A crash before they are
// durable finds a longer log.
//
// The budget follows section 5.1.2 of the Raft thesis: a log is worth its place while catching up from it is cheaper
// than a snapshot, so while it is at most Factor times as large as the shard; within a floor, a cap for the shard and
// one for the store, which lowers the largest logs first.
//
// That is for a log that somebody needs. Where the leader knows that all members have it, and on followers, only as much is
// kept as lets a new leader go on feeding whoever was a little behind, or stopped together with the old one: SpareBytes of
// all logs that are written to, and on followers what was applied within the last election timeout. So what is written and
// deleted again does not sink into the levels of the engine in between; with a log of 1 GiB a store's compactions were
// more than twice as far behind (docs/decisions/0019). A leader keeps for a member that it cannot reach what that one
// lacks, from the moment of its own election on.

// Compaction says how much of the raft logs is kept, in bytes unless said otherwise.
type Compaction struct {
	FloorBytes    uint64 // every log may have so much: 1 MiB
	ShardCapBytes uint64 // no log has more, whoever might need it: 64 MiB
	StoreCapBytes uint64 // nor have all together: 1 GiB
	SpareBytes    uint64 // of all logs that are written to together, if nobody is known to need more: 16 MiB
	Factor        uint64 // log bytes per byte of the shard: 4. More feeds longer outages from the log
	// PinTimeout is for how long a snapshot in flight keeps the log above its index: 10 min. A longer one is in vain if
	// the log has gone on by then.
	PinTimeout time.Duration
}

func (c Compaction) withDefaults() Compaction {
	orElse(&c.FloorBytes, 1<<20)
	orElse(&c.ShardCapBytes, 64<<20)
	orElse(&c.StoreCapBytes, 1<<30)
	orElse(&c.SpareBytes, 16<<20)
	orElse(&c.Factor, 4)
	orElse(&c.PinTimeout, 10*time.Minute)
	return c
}

// compaction is what a replica's worker knows for its next decision.
type compaction struct {
	term    uint64 // of the leadership that settled counts for
	settled int32  // ticks since it began
	aged    int32  // ticks since recent
	// What was applied one to two election timeouts ago, and at most one ago.
	old, recent uint64
}

// compact truncates the replica's log if it is over its budget. The caller has no Ready of the group in flight.
func (w *worker) compact(r *replica, ticks int) {
	rw := &r.worker
	rw.compaction.follow(rw.leads, rw.term, ticks)
	rw.compaction.age(r.applied.Load(), ticks, w.store.cfg.ElectionTick)
	first, to, at := w.cut(r)
	if at == nil {
		return
	}
	bytes := rw.log.Bytes()
	term, err := rw.log.Term(to)
	if err != nil {
		w.store.fault(r, "truncate log: "+err.Error(), nil)
		return
	}
	if w.truncations == nil {
		w.truncations = w.store.engine.NewBatch()
	}
	rw.log.Truncate(w.truncations, to, term, *at)
	rw.history.truncated(to)
	m := w.store.metrics
	m.truncations.Inc()
	m.truncatedEntries.Add(float64(to - first + 1))
	m.truncatedBytes.Add(float64(bytes - rw.log.Bytes()))
}

// cut says where the replica's log would be truncated now, from first to to with the configuration at to, which is nil if
// it would not be. The caller has no Ready of the group in flight.
func (w *worker) cut(r *replica) (first, to uint64, conf *raftpb.ConfState) {
	rw, cfg := &r.worker, &w.store.cfg
	bytes := rw.log.Bytes()
	if bytes <= min(cfg.Compaction.FloorBytes, w.logLevel, w.spareLevel) {
		return 0, 0, nil
	}
	budget := w.budget(r)
	if keep := min(budget, w.spareLevel); keep < budget && bytes > keep {
		if first, to, conf = w.cutTo(r, keep, true); conf != nil {
			return first, to, conf
		}
	}
	if bytes <= budget {
		return 0, 0, nil
	}
	return w.cutTo(r, budget, false)
}

// cutTo is cut for a log over its budget; spare: of what no member lacks only.
func (w *worker) cutTo(r *replica, budget uint64, spare bool) (first, to uint64, conf *raftpb.ConfState) {
	rw := &r.worker
	bytes := rw.log.Bytes()
	first, last := rw.log.Bounds()
	to = last - min(last-first+1, entriesOf(budget/2, bytes, last-first+1)) // keep so many
	limit := w.mayTruncate(r, first, last, bytes, budget, spare)
	at, known := rw.history.at(to)
	if !known && bytes > 2*budget {
		// What was the configuration in the log of an earlier life is not known. It is where that ended.
		to, at = rw.history.first()
	} else if !known {
		return 0, 0, nil
	}
	if to > limit {
		to = limit
		if at, known = rw.history.at(to); !known {
			return 0, 0, nil
		}
	}
	// A cut that frees little is not worth its tombstones, as when a slow follower holds the rest.
	if to < first || (to-first+1)*8 < last-first+1 {
		return 0, 0, nil
	}
	return first, to, at
}

// commitTruncations writes what compact has put together in this pass.
func (w *worker) commitTruncations() {
	b := w.truncations
	if b == nil {
		return
	}
	w.truncations = nil
	if err := w.store.engine.Commit(b, false); err != nil {
		// The log in memory starts where the one on disk will not; but a disk that refuses this ends the process.
		w.store.log.Error("truncation of raft logs", "reason", err)
	}
	b.Close()
}

// budget returns how many bytes of log the replica may keep.
func (w *worker) budget(r *replica) uint64 {
	cfg := &w.store.cfg.Compaction
	if w.store.spaceLevel() != engine.SpaceOK {
		return min(cfg.FloorBytes, w.logLevel)
	}
	r.sizeNow(w.now)
	// Of the tables only: what a few keys have written over and over is no reason to keep a longer log.
	return min(max(cfg.FloorBytes, min(r.size.tables.Load(), cfg.ShardCapBytes)*cfg.Factor), cfg.ShardCapBytes, w.logLevel)
}

// mayTruncate returns the highest index that may go; spare: if no member is to lack anything, reachable or not.
func (w *worker) mayTruncate(r *replica, first, last, bytes, budget uint64, spare bool) uint64 {
	rw := &r.worker
	limit := min(r.applied.Load(), last) // published: its batch is in the engine's log before ours
	now := w.now
	if spare {
		now = 0 // a snapshot in flight is some member's need, however long it takes
	}
	if pin, ok := r.pinned(now); ok {
		limit = min(limit, pin)
	}
	switch {
	case !rw.leads && spare:
		return min(limit, rw.compaction.old) // others may be a little behind, and it may have to lead them
	case !rw.leads:
		return limit
	case rw.compaction.settled <= int32(w.store.cfg.ElectionTick):
		return min(limit, first-1) // nobody has been heard of yet
	}
	rw.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if base.ReplicaID(id) == r.id || !spare && (pr.State == tracker.StateSnapshot || !w.isActive(r, id, &pr)) {
			return
		}
		has := pr.Match
		switch {
		case spare && pr.State == tracker.StateSnapshot:
			has = max(has, pr.PendingSnapshot)
		case spare && has == 0: // not heard of since our election: it may lack anything
			limit = min(limit, first-1)
			return
		case spare && pr.State == tracker.StateProbe && has+1 < first && pr.Next >= first:
			has = pr.Next - 1 // its snapshot has been installed, its answer is on its way
		case !spare && pr.State == tracker.StateProbe:
			has = max(has, pr.Next-1) // what raft believes it to have; below Match it knows
		}
		if has+1 < first || has >= limit {
			return
		}
		if spare || entryBytes(last-has, bytes, last-first+1) <= budget {
			limit = has
		}
	})
	return limit
}

// pinned returns the lowest index above which a snapshot in flight needs the log; one that takes too long needs it no
// more (hazard: a stuck snapshot pins the log).
func (r *replica) pinned(now time.Duration) (index uint64, ok bool) {
	for i := range r.worker.sending {
		s := &r.worker.sending[i]
		if now-s.Started > r.store.cfg.Compaction.PinTimeout {
			continue
		}
		if !ok || s.Index < index {
			index, ok = s.Index, true
		}
	}
	return index, ok
}

// entryBytes and entriesOf go by the log's average entry.
func entryBytes(n, bytes, entries uint64) uint64 {
	return uint64(float64(n) * float64(bytes) / float64(max(entries, 1)))
}

func entriesOf(n, bytes, entries uint64) uint64 {
	return uint64(float64(n) * float64(entries) / float64(max(bytes, 1)))
}

// follow counts the ticks of a leadership.
func (c *compaction) follow(leads bool, term uint64, ticks int) {
	if !leads || c.term != term {
		c.term, c.settled = term, 0
	}
	c.settled = int32(min(int(c.settled)+ticks, math.MaxInt32/2))
}

// age follows what is applied, at a distance.
func (c *compaction) age(applied uint64, ticks, period int) {
	if c.aged += int32(ticks); int(c.aged) >= period {
		c.aged, c.old, c.recent = 0, c.recent, applied
	}
}

// levelLogs finds the budget that the store's cap leaves to the largest logs, and wakes those that sleep on more than that
// and can be cut. It runs at each tick and is cheap unless the cap is reached.
func (w *worker) levelLogs() {
	s := w.store
	s.logBytes[w.index].Store(w.logTotal)
	total := s.totalLogBytes()
	limit := s.cfg.Compaction.StoreCapBytes
	w.logLevel = s.cfg.Compaction.ShardCapBytes
	if total <= limit {
		return
	}
	s.mu.RLock()
	sizes := make([]uint64, 0, len(s.mu.replicas))
	for _, r := range s.mu.replicas {
		sizes = append(sizes, r.logBytes())
	}
	s.mu.RUnlock()
	w.logLevel = min(w.logLevel, level(sizes, limit))
	for _, r := range w.replicas {
		rw := &r.worker
		if rw.awake || rw.waking || rw.disposed || rw.still || rw.inflight || r.uninitialised() || r.logBytes() <= w.logLevel {
			continue
		}
		if _, _, conf := w.cut(r); conf != nil { // a log that something holds would wake it in vain, again and again
			w.queueWake(r, 0)
		}
	}
}

// levelSpare finds how much a log may have of what nobody is known to need: with the others of this worker that are
// awake, its part of what the store may. Those that sleep are left as they are: nobody writes to them.
func (w *worker) levelSpare() {
	cfg := &w.store.cfg.Compaction
	if w.turns%spareTicks != 0 && w.spareLevel > 0 {
		return
	}
	sizes, total := make([]uint64, 0, len(w.awake)), uint64(0)
	for _, r := range w.awake {
		sizes = append(sizes, r.logBytes())
		total += r.logBytes()
	}
	w.spareLevel = cfg.ShardCapBytes
	if limit := cfg.SpareBytes / uint64(len(w.store.workers)); total > limit {
		w.spareLevel = max(level(sizes, limit), min(cfg.FloorBytes, leastSpare))
	}
}

const (
	// spareTicks is how many ticks lie between two looks of levelSpare.
	spareTicks = 5
	// leastSpare is what a log may have in any case: less is not worth a truncation.
	leastSpare = 64 << 10
)

// level returns the highest size to which the larger ones must be cut so that all together stay within limit.
func level(sizes []uint64, limit uint64) uint64 {
	slices.Sort(sizes)
	rest := limit
	for i, size := range sizes {
		n := uint64(len(sizes) - i)
		if size*n > rest {
			return rest / n
		}
		rest -= size
	}
	if len(sizes) == 0 {
		return limit
	}
	return sizes[len(sizes)-1]
}

func (s *Store) totalLogBytes() (total uint64) {
	for i := range s.logBytes {
		total += s.logBytes[i].Load()
	}
	return total
}

// logBytes may be asked by anybody.
func (r *replica) logBytes() uint64 {
	if l := r.worker.log; l != nil { // set once, before the replica is published
		return l.Bytes()
	}
	return 0
}

// confHistory remembers the configurations that were in force at the indexes of the log, so that a truncation can say
// which one was at its index. Before its first entry nothing is known.
type confHistory struct{ changes []confAt }

type confAt struct {
	index uint64
	conf  *raftpb.ConfState // never changed
}

// reset starts the history at an index whose configuration is known.
func (h *confHistory) reset(index uint64, conf *raftpb.ConfState) {
	h.changes = append(h.changes[:0], confAt{index, conf})
}

func (h *confHistory) changed(index uint64, conf *raftpb.ConfState) {
	h.changes = append(h.changes, confAt{index, conf})
}

// at returns the configuration at an index, and false if it is not known.
func (h *confHistory) at(index uint64) (*raftpb.ConfState, bool) {
	for i := len(h.changes) - 1; i >= 0; i-- {
		if h.changes[i].index <= index {
			return h.changes[i].conf, true
		}
	}
	return nil, false
}

// first returns the lowest index that is known. The history is never empty.
func (h *confHistory) first() (uint64, *raftpb.ConfState) {
	return h.changes[0].index, h.changes[0].conf
}

// truncated forgets what no later truncation can ask for.
func (h *confHistory) truncated(to uint64) {
	n := 0
	for n+1 < len(h.changes) && h.changes[n+1].index <= to {
		n++
	}
	h.changes = slices.Delete(h.changes, 0, n)
}
