package shard

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/raft/v3"

	"github.com/shardd/shardd/internal/wire"
)

// Reads. Intake (ReadIndex): checked. At a leader whose lease holds, the commit index of this moment is the read index, and
// nobody is asked. Else the reads are queued in the inbox. Ask: all waiting reads of the group share one read index.
// Confirm: a quorum has answered, or the lease holds by now; the reads wait until that index is applied here. Then the
// waiter is completed and its owner calls Store.Read, which opens the view after all of this (V6). ReadNow does all of it
// at once, if nothing has to be waited for.

// readIndex is one question to the quorum and the reads that it is for.
type readIndex struct {
	ctx  []byte
	at   time.Duration // not after it was asked
	reqs []ReadRequest
}

// maxIndexes is how many read indexes a group may have under way: while one travels the next one fills.
const maxIndexes = 2

// contextSize is that of a read index context: replica id, incarnation, counter. Together they never come twice (R4):
// raft 3.5 keys acknowledgements by the context alone, so an old one would confirm a new read.
const contextSize = 24

// waiting holds confirmed reads until their index is applied.
type waiting struct {
	sync.Mutex
	reads []confirmedReads
	ended *wire.Answer // what to tell who comes too late; nil: the replica lives
}

type confirmedReads struct {
	index uint64
	reqs  []ReadRequest
}

// ReadIndex asks for linearizable reads. Every request is completed exactly once: OK means that a view opened from
// now on holds every write that was acknowledged before the call; NotLeader, EpochMismatch, ShardNotFound, Busy,
// TimedOut, Unavailable and Failed mean that nothing may be read.
func (s *Store) ReadIndex(reqs []ReadRequest) {
	scratch := keyScratch.Get().(*[]uint64)
	keys := (*scratch)[:0]
	now := s.clock.Boot()
	for i := range reqs {
		req := &reqs[i]
		r := s.serving(req.Shard)
		if r == nil {
			a := s.absent(req.Key, req.End)
			a.Req = req.Req
			req.Waiter.Complete(req.Req, a)
			continue
		}
		if (req.Follower || req.MaxAge > 0) && s.readHere(r, req, now) {
			continue
		}
		a, queued, ok := r.admitRead(req, now)
		if !ok {
			s.metrics.refused(a.Code)
			r.complete(req.Waiter, req.Req, a)
			continue
		}
		if !queued {
			continue
		}
		if n := len(keys); n == 0 || keys[n-1] != uint64(req.Shard) {
			keys = append(keys, uint64(req.Shard))
		}
	}
	s.pool.EnqueueMany(keys)
	*scratch = keys
	keyScratch.Put(scratch)
}

// admitRead takes a read, or returns the answer that refuses it. queued: the worker has to look at it.
func (r *replica) admitRead(req *ReadRequest, now time.Duration) (a wire.Answer, queued, ok bool) {
	index, leased := r.leaseIndex()
	a, ok = r.queueRead(req, now, leased)
	if !ok || !leased {
		return a, ok, ok
	}
	r.store.metrics.leaseReads.Inc()
	if req.Trace != nil {
		req.Trace.committed.set(now)
	}
	r.awaitApplied(index, []ReadRequest{*req})
	return a, false, true
}

// queueRead counts a read, and queues it unless it needs no read index of its own.
func (r *replica) queueRead(req *ReadRequest, now time.Duration, leased bool) (wire.Answer, bool) {
	s := r.store
	if !req.IndexOnly && req.Version != r.desc.Load().Epoch.Version {
		return r.epochMismatch(req.Key, req.End), false
	}
	req.Deadline = s.deadline(req.Deadline, now)
	in := &r.in
	in.Lock()
	defer in.Unlock()
	if in.closed != wire.OK {
		return answerText(in.closed, in.reason), false
	}
	if !r.lead.Load().leads {
		return r.notLeader(), false
	}
	if r.frozen.Load() != nil {
		return s.frozenAnswer(), false
	}
	// Bounded by us: before the first commit of a term raft would keep them without limit (R5).
	if a, ok := r.countRead(); !ok {
		return a, false
	}
	if !leased {
		in.reads = append(in.reads, *req)
	}
	return wire.Answer{}, true
}

// countRead puts a read on the accounts, unless they are full.
func (r *replica) countRead() (wire.Answer, bool) {
	s, in := r.store, &r.in
	lim := &s.cfg.Limits
	if n := in.readCount.Load(); n > 0 {
		if n >= lim.GroupReads {
			return s.busy("group-reads", busyGroupMs), false
		}
		if s.used.reads.Load() >= lim.StoreReads {
			return s.busy("store-reads", busyStoreMs), false
		}
	}
	in.readCount.Add(1)
	s.used.reads.Add(1)
	return wire.Answer{}, true
}

// leaseIndex returns, at a leader whose lease holds, the index that a read which begins now has to see applied (V5). The
// lease is looked at again after the commit index was: while it holds nobody else has committed anything, and before
// anybody can know of a commit of this leader's it is published.
func (r *replica) leaseIndex() (index uint64, ok bool) {
	l := r.lease.Load()
	if l == nil {
		return 0, false
	}
	index = max(r.commit.Load(), l.first)
	if !r.stillHolds(l.term) {
		return 0, false
	}
	return index, true
}

// stillHolds reports whether the lease of a term holds at this moment, by a clock that is read now.
func (r *replica) stillHolds(term uint64) bool {
	l := r.lease.Load()
	return l != nil && l.term == term && l.holds(r.store.live, r.store.clock.Boot())
}

// completeReads answers reads and takes them off the accounts.
func (r *replica) completeReads(reqs []ReadRequest, a wire.Answer) {
	if len(reqs) == 0 {
		return
	}
	r.in.readCount.Add(-int64(len(reqs)))
	r.store.used.reads.Add(-int64(len(reqs)))
	for i := range reqs {
		r.complete(reqs[i].Waiter, reqs[i].Req, a)
	}
}

// askIndex puts all waiting reads on one read index, once the leader has committed an entry of its own term: before
// that raft would hold the question in a queue of its own (R5).
func (w *worker) askIndex(r *replica) {
	rw := &r.worker
	st := rw.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || rw.nonvoter { // V13: raft would answer it, alone
		r.refuseReads(r.notLeader())
		return
	}
	if r.frozen.Load() != nil {
		r.refuseReads(w.store.frozenAnswer())
		return
	}
	if index, ok := r.leaseIndex(); ok { // it came while they waited
		reqs := rw.reads
		rw.reads = nil
		w.store.metrics.leaseReads.Add(float64(len(reqs)))
		r.awaitApplied(index, reqs)
		return
	}
	if rw.committedTerm != st.Term || len(rw.indexes) >= maxIndexes {
		return
	}
	ctx := make([]byte, 0, contextSize)
	ctx = binary.BigEndian.AppendUint64(ctx, uint64(r.id))
	ctx = binary.BigEndian.AppendUint64(ctx, w.store.cfg.Incarnation)
	ctx = binary.BigEndian.AppendUint64(ctx, w.store.contexts.Add(1))
	rw.indexes = append(rw.indexes, readIndex{ctx: ctx, at: w.now, reqs: rw.reads})
	markReads(rw.reads, func(t *Trace) *mark { return &t.proposed }, w.now)
	rw.reads = nil
	rw.rn.ReadIndex(ctx)
	w.store.metrics.readIndexes.Inc()
}

// confirm takes the answer to a read index.
func (w *worker) confirm(r *replica, rs *raft.ReadState) {
	rw := &r.worker
	for i := range rw.indexes {
		if !bytes.Equal(rw.indexes[i].ctx, rs.RequestCtx) {
			continue
		}
		reqs := rw.indexes[i].reqs
		r.noteFresh(rs.Index, rw.indexes[i].at)
		n := i + copy(rw.indexes[i:], rw.indexes[i+1:])
		rw.indexes[n] = readIndex{}
		rw.indexes = rw.indexes[:n]
		if len(rw.reads) > 0 {
			w.store.pool.Enqueue(uint64(r.shard))
		}
		markReads(reqs, func(t *Trace) *mark { return &t.committed }, w.now)
		r.awaitApplied(rs.Index, reqs)
		return
	}
	// Of an earlier leadership: those reads have been refused.
}

// awaitApplied completes reads once the index is applied, which may be now.
func (r *replica) awaitApplied(index uint64, reqs []ReadRequest) {
	if reqs = r.answerIndexes(index, reqs); len(reqs) == 0 {
		return
	}
	r.wait.Lock()
	if ended := r.wait.ended; ended != nil {
		r.wait.Unlock()
		r.completeReads(reqs, *ended)
		return
	}
	if r.applied.Load() < index {
		// Under the lock that the publisher takes after it has stored the applied index: it cannot miss these.
		r.wait.reads = append(r.wait.reads, confirmedReads{index, reqs})
		reqs = nil
	}
	r.wait.Unlock()
	r.readyReads(reqs)
}

// releaseReads completes the reads that wait for an index up to the applied one, which is published already.
func (r *replica) releaseReads() {
	if r.in.readCount.Load() == 0 {
		return
	}
	applied := r.applied.Load()
	var ready []confirmedReads
	r.wait.Lock()
	keep := r.wait.reads[:0]
	for _, c := range r.wait.reads {
		if c.index <= applied {
			ready = append(ready, c)
		} else {
			keep = append(keep, c)
		}
	}
	clear(r.wait.reads[len(keep):])
	r.wait.reads = keep
	r.wait.Unlock()
	for _, c := range ready {
		r.readyReads(c.reqs)
	}
}

func (r *replica) readyReads(reqs []ReadRequest) {
	if why, bad := r.faultReason(); bad {
		r.completeReads(reqs, answerText(wire.Failed, why))
		return
	}
	if r.frozen.Load() != nil { // published before the applied index that lets them go
		r.completeReads(reqs, r.store.frozenAnswer())
		return
	}
	r.store.metrics.readyReads.Add(float64(len(reqs)))
	if slices.ContainsFunc(reqs, func(q ReadRequest) bool { return q.Trace != nil }) {
		markReads(reqs, func(t *Trace) *mark { return &t.applied }, r.store.clock.Boot())
	}
	r.completeReads(reqs, wire.Answer{Code: wire.OK})
}

// refuseReads answers the reads whose index is not known: queued, or under way at a leader that no longer leads (R5).
// Confirmed ones stay good: they only wait for apply.
func (r *replica) refuseReads(a wire.Answer) {
	rw := &r.worker
	reads := rw.reads
	rw.reads = nil
	indexes := rw.indexes
	rw.indexes = nil
	r.completeReads(reads, a)
	for i := range indexes {
		r.completeReads(indexes[i].reqs, a)
	}
}

// expireReads answers those past their deadline and returns the rest.
func (r *replica) expireReads(reqs []ReadRequest, now time.Duration) []ReadRequest {
	keep := reqs[:0]
	var late []ReadRequest
	for i := range reqs {
		if reqs[i].Deadline > now {
			keep = append(keep, reqs[i])
		} else {
			late = append(late, reqs[i])
		}
	}
	clear(reqs[len(keep):])
	r.completeReads(late, wire.Answer{Code: wire.TimedOut})
	return keep
}

func (w *worker) sweepReads(r *replica) {
	rw := &r.worker
	rw.reads = r.expireReads(rw.reads, w.now)
	for i := range rw.indexes {
		// An index without reads stays: raft keeps it too, and it counts against maxIndexes.
		rw.indexes[i].reqs = r.expireReads(rw.indexes[i].reqs, w.now)
	}
	r.sweepWaiting(w.now)
}

// sweepWaiting answers the confirmed reads that are past their deadline; true if others wait on. Any goroutine may.
func (r *replica) sweepWaiting(now time.Duration) bool {
	r.wait.Lock()
	all := r.wait.reads
	r.wait.reads = nil
	r.wait.Unlock()
	// They are in nobody's list for a moment; awaitApplied puts them where they belong, also if apply has passed by.
	for _, c := range all {
		r.awaitApplied(c.index, r.expireReads(c.reqs, now))
	}
	r.wait.Lock()
	defer r.wait.Unlock()
	return len(r.wait.reads) > 0
}
