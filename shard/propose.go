package shard

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Proposals. Intake (Write): checked against the published descriptor and leader, queued in the inbox. Propose: all
// queued writes of the group become few entries of one MsgProp. Bind: raft has given them term and index; a Ready
// carries them. Hand: an entry has been committed; the proposal at its term and index goes with it to apply. A crash
// in between loses the waiters with the process; their clients see a broken stream, which is ambiguous.

// proposal is one log entry of ours with everybody who waits for it.
type proposal struct {
	id          uint64
	index, term uint64 // 0 until bound
	bytes       int64
	at          time.Duration // proposed
	reqs        []WriteRequest
	open        int    // reqs without an answer
	trace       *Trace // of one of reqs that is followed
}

var proposalPool = sync.Pool{New: func() any { return new(proposal) }}

func (p *proposal) free() {
	clear(p.reqs)
	*p = proposal{reqs: p.reqs[:0]}
	proposalPool.Put(p)
}

// Back-off suggested with Busy, in ms: a group drains its queues in a few syncs, a store in more.
const (
	busyGroupMs = 20
	busyStoreMs = 50
)

// Write takes writes for any number of shards, with one wake-up per worker. Every request is completed exactly once:
//
//	OK, ConditionFailed, Invalid, EpochMismatch   from apply: it is decided, on a quorum
//	NotLeader, EpochMismatch, ShardNotFound, Busy, Invalid, TimedOut, Unavailable, Failed
//	                                              it has not happened and never will
//	Ambiguous                                     proposed, and nobody here learned what became of it
//
// Requests of one call for one shard keep their order.
func (s *Store) Write(reqs []WriteRequest) {
	scratch := keyScratch.Get().(*[]uint64)
	keys := (*scratch)[:0]
	now := s.clock.Boot()
	for i := range reqs {
		req := &reqs[i]
		r := s.serving(req.Shard)
		if r == nil {
			var op wire.Op
			_, _, _ = wire.DecodeOp(req.Raw, &op) // if it does not decode it has no key
			a := s.absentFor(&op)
			a.Req = req.Req
			req.Waiter.Complete(req.Req, a)
			continue
		}
		if a, ok := r.admit(req, now); !ok {
			s.metrics.refused(a.Code)
			r.complete(req.Waiter, req.Req, a)
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

// admit checks a write and queues it, or returns the answer that refuses it.
func (r *replica) admit(req *WriteRequest, now time.Duration) (wire.Answer, bool) {
	s := r.store
	var op wire.Op
	_, rest, err := wire.DecodeOp(req.Raw, &op)
	switch {
	case err != nil:
		return answerText(wire.Invalid, err.Error()), false
	case len(rest) > 0 || !op.Code.IsWrite() || op.Shard != r.shard:
		return answerText(wire.Invalid, fmt.Sprintf("%s: not one write for %s", op.Code, r.shard)), false
	}
	// Not only manners: what apply does not know faults the replicas.
	if err := op.Validate(); err != nil {
		return answerText(wire.Invalid, err.Error()), false
	}
	if !r.serves(&op, req.Version) {
		return r.mismatchOf(&op), false
	}
	if why := s.refuseForSpace(&op); why != "" && r.lead.Load().leads {
		return answerText(wire.DiskFull, why), false
	}
	if a, ok := r.refuseForSize(&op, now); !ok {
		return a, false
	}
	req.Deadline = s.deadline(req.Deadline, now)
	size := int64(len(req.Raw))
	in, lim := &r.in, &s.cfg.Limits
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
	if s.stalled.Load() {
		// It would wait for its deadline here, while another replica leads, or is about to (L2).
		return answerText(wire.Unavailable, "the store's disk does not take syncs"), false
	}
	if held := in.writeBytes.Load(); held > 0 {
		if held+size > lim.GroupQueue {
			return s.busy("group-queue", busyGroupMs), false
		}
		if s.used.queue.Load()+size > lim.StoreQueue {
			return s.busy("store-queue", busyStoreMs), false
		}
	}
	in.writeBytes.Add(size)
	s.used.queue.Add(size)
	in.writes = append(in.writes, *req)
	if sm := r.load.sampler.Load(); sm != nil {
		sm.write(&op, len(req.Raw), now)
	}
	return wire.Answer{}, true
}

// serves checks epoch and range against the published descriptor. The steps of a Batch are checked by apply.
func (r *replica) serves(op *wire.Op, version uint64) bool {
	d := r.desc.Load()
	if version != d.Epoch.Version || op.Version != version || !d.Contains(op.Key) {
		return false
	}
	return (op.Code != wire.OpDeleteRange && op.Code != wire.OpScan) || string(op.Value) <= string(d.End)
}

func (s *Store) busy(limit string, ms uint64) wire.Answer {
	s.metrics.busy.WithLabelValues(limit).Inc()
	return wire.Answer{Code: wire.Busy, Arg: ms, Payload: []byte(limit)}
}

// unqueue takes n bytes off the queue's accounts.
func (r *replica) unqueue(n int64) {
	r.in.writeBytes.Add(-n)
	r.store.used.queue.Add(-n)
}

// refuseWrites answers everything that is queued and not proposed.
func (r *replica) refuseWrites(a wire.Answer) {
	rw := &r.worker
	var n int64
	for i := range rw.writes {
		n += int64(len(rw.writes[i].Raw))
	}
	r.unqueue(n)
	for i := range rw.writes {
		r.complete(rw.writes[i].Waiter, rw.writes[i].Req, a)
	}
	clear(rw.writes)
	rw.writes = rw.writes[:0]
	rw.blocked = false
}

// propose makes entries of the queued writes, as far as the limits on uncommitted bytes allow, and steps them as one
// message: raft does 2-3 M entries a second that way and a tenth of it one by one.
func (w *worker) propose(r *replica) {
	rw, s := &r.worker, w.store
	st := rw.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || rw.nonvoter {
		if st.Lead != 0 && r.lead.Load().leads {
			// Stepped down in this very pass; the answer should name the new leader.
			r.refuseWrites(wire.Answer{Code: wire.NotLeader, Arg: uint64(r.storeOf(base.ReplicaID(st.Lead)))})
			return
		}
		r.refuseWrites(r.notLeader())
		return
	}
	if r.frozen.Load() != nil {
		r.refuseWrites(s.frozenAnswer())
		return
	}
	if rw.freezing {
		return // they wait for the outcome
	}
	if st.LeadTransferee != 0 {
		return // raft would drop them; they wait for the outcome
	}
	rw.blocked = false
	version := r.desc.Load().Epoch.Version
	wall := uint64(max(s.clock.Wall().UnixMilli(), 0)) << 16 // a clock before 1970 must not use up all stamps
	var ents []raftpb.Entry
	done, total := 0, 0
	for done < len(rw.writes) && total < s.cfg.PassBytes/4 {
		n, size := rw.takeEntry(done, s.cfg.EntryBytes)
		if rw.uncommitted > 0 && (rw.uncommitted+int64(size) > s.cfg.Limits.GroupUncommitted ||
			s.used.uncommitted.Load()+int64(size) > s.cfg.Limits.StoreUncommitted) {
			rw.blocked = true
			break
		}
		p := proposalPool.Get().(*proposal)
		data := make([]byte, wire.EntryHeaderSize, wire.EntryHeaderSize+size)
		for i := done; i < done+n; i++ {
			req := &rw.writes[i]
			r.unqueue(int64(len(req.Raw)))
			switch {
			case req.Version != version:
				var op wire.Op
				_, _, _ = wire.DecodeOp(req.Raw, &op) // admitted
				r.complete(req.Waiter, req.Req, r.mismatchOf(&op))
			case req.Deadline <= w.now:
				r.complete(req.Waiter, req.Req, wire.Answer{Code: wire.TimedOut})
			default:
				data = append(data, req.Raw...)
				req.Raw = nil // in the entry now
				if req.Trace != nil && p.trace == nil {
					p.trace = req.Trace
					p.trace.proposed.set(w.now)
				}
				p.reqs = append(p.reqs, *req)
			}
		}
		done += n
		if len(p.reqs) == 0 {
			p.free()
			continue
		}
		count := uint64(len(p.reqs))
		stamp := max(wall, rw.lastStamp+1)
		rw.lastStamp = stamp + count - 1
		p.id, p.open, p.at = s.proposals.Add(1), len(p.reqs), w.now
		h := wire.EntryHeader{Kind: wire.EntryData, Count: uint32(count), Proposal: p.id, Stamp: stamp}
		h.Append(data[:0])
		p.bytes = int64(len(data))
		rw.uncommitted += p.bytes
		s.used.uncommitted.Add(p.bytes)
		ents = append(ents, raftpb.Entry{Data: data})
		rw.unbound = append(rw.unbound, p)
		total += len(data)
	}
	rest := copy(rw.writes, rw.writes[done:])
	clear(rw.writes[rest:])
	rw.writes = rw.writes[:rest]
	if rest > 0 && !rw.blocked {
		s.pool.Enqueue(uint64(r.shard)) // cut by size: the next pass goes on
	}
	if len(ents) == 0 {
		return
	}
	err := rw.rn.Step(raftpb.Message{Type: raftpb.MsgProp, From: uint64(r.id), Entries: ents})
	if err != nil {
		// Dropped as a whole, so it never will happen: raft's own limit, or a leader that is no member any more.
		for _, p := range rw.unbound {
			s.settle(r, p, s.busy("raft-dropped", busyGroupMs))
		}
		clear(rw.unbound)
		rw.unbound = rw.unbound[:0]
	}
}

// takeEntry returns how many of the writes from at on fit into one entry, at least one, and their bytes.
func (rw *replicaWorker) takeEntry(at, limit int) (n, size int) {
	for i := at; i < len(rw.writes); i++ {
		l := len(rw.writes[i].Raw)
		if n > 0 && size+l > limit {
			break
		}
		n, size = n+1, size+l
	}
	return n, size
}

// bind gives the proposals of this step the term and index under which they stand in the Ready. It returns the number
// of client writes in them.
func (w *worker) bind(r *replica, ents []raftpb.Entry) (writes int) {
	rw := &r.worker
	if len(rw.unbound) == 0 {
		return 0
	}
	next := 0
	for i := range ents {
		if next == len(rw.unbound) {
			break
		}
		e := &ents[i]
		p := rw.unbound[next]
		if e.Type == raftpb.EntryNormal && len(e.Data) >= wire.EntryHeaderSize &&
			binary.BigEndian.Uint64(e.Data[8:]) == p.id {
			p.index, p.term = e.Index, e.Term
			rw.pending = append(rw.pending, p)
			next++
			writes += p.open
			if p.trace != nil {
				r.watch(p)
				w.traces = append(w.traces, p.trace)
			}
		}
	}
	if next < len(rw.unbound) {
		rw.unbound = rw.unbound[next:] // those before are pending: nobody may be answered twice
		// Nothing is stepped between the proposal and Ready, so raft must show it.
		panic(fmt.Sprintf("proposal %d was accepted and is not in the Ready", rw.unbound[0].id))
	}
	w.store.metrics.proposals.Add(float64(next))
	clear(rw.unbound)
	rw.unbound = rw.unbound[:0]
	return writes
}

// settle answers what is open of a proposal that left the list of pending ones.
func (s *Store) settle(r *replica, p *proposal, a wire.Answer) {
	s.uncount(r, p)
	r.answerOpen(p, a)
	p.free()
}

func (s *Store) uncount(r *replica, p *proposal) {
	r.worker.uncommitted -= p.bytes
	s.used.uncommitted.Add(-p.bytes)
}

func (r *replica) answerOpen(p *proposal, a wire.Answer) {
	for i := range p.reqs {
		if req := &p.reqs[i]; req.Waiter != nil {
			r.complete(req.Waiter, req.Req, a)
			req.Waiter = nil
		}
	}
	p.open = 0
}

// resolve takes the proposals off the pending list that a committed entry decides: the one that is this entry is
// returned, those that another term's entry has displaced get a definite answer. Terms never fall along a log, so a
// committed entry of a higher term also decides everything of ours at a later index and a lower term.
func (w *worker) resolve(r *replica, e *raftpb.Entry) *proposal {
	rw, s := &r.worker, w.store
	for len(rw.pending) > 0 {
		p := rw.pending[0]
		switch {
		case p.index == e.Index && p.term == e.Term:
			rw.popPending()
			s.uncount(r, p)
			s.metrics.commitSeconds.Observe((w.now - p.at).Seconds())
			if p.trace != nil {
				p.trace.committed.set(w.now)
			}
			return p
		case p.index <= e.Index || p.term < e.Term:
			rw.popPending()
			s.settle(r, p, r.notLeader())
		default:
			return nil
		}
	}
	return nil
}

func (rw *replicaWorker) popPending() {
	n := copy(rw.pending, rw.pending[1:]) // a handful: those in flight
	rw.pending[n] = nil
	rw.pending = rw.pending[:n]
}

// sweep answers what is past its deadline. It runs at each tick, also while a Ready is in flight.
func (w *worker) sweep(r *replica) {
	rw := &r.worker
	r.in.Lock()
	r.takeRequestsLocked()
	r.in.Unlock()
	if len(rw.writes) > 0 {
		w.sweepWrites(r)
	}
	if len(rw.pending) > 0 {
		w.sweepPending(r)
	}
	if r.in.readCount.Load() > 0 {
		w.sweepReads(r)
	}
}

func (w *worker) sweepWrites(r *replica) {
	rw := &r.worker
	keep := rw.writes[:0]
	for i := range rw.writes {
		req := rw.writes[i]
		if req.Deadline > w.now {
			keep = append(keep, req)
			continue
		}
		r.unqueue(int64(len(req.Raw)))
		r.complete(req.Waiter, req.Req, wire.Answer{Code: wire.TimedOut})
	}
	clear(rw.writes[len(keep):])
	rw.writes = keep
}

func (w *worker) sweepPending(r *replica) {
	rw := &r.worker
	leads := r.lead.Load()
	keep := rw.pending[:0]
	for _, p := range rw.pending {
		for i := range p.reqs {
			if req := &p.reqs[i]; req.Waiter != nil && req.Deadline <= w.now {
				r.complete(req.Waiter, req.Req, answerText(wire.Ambiguous, "deadline passed before it was committed"))
				req.Waiter = nil
				p.open--
			}
		}
		// As long as we lead in its term the entry is in our log and counts against the limit.
		if p.open == 0 && !(leads.leads && leads.term == p.term) {
			w.store.uncount(r, p)
			p.free()
			continue
		}
		keep = append(keep, p)
	}
	clear(rw.pending[len(keep):])
	rw.pending = keep
}
