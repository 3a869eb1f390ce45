package shard

import (
	"errors"
	"slices"

	"github.com/shardd/shardd/internal/wire"
)

// fault stops a replica for good, with a reason that its status shows (R9). The first reason stays. The worker's
// part is cleaned up on its next visit.
func (s *Store) fault(r *replica, reason string, stack []byte) {
	if !r.faulted.CompareAndSwap(nil, &reason) {
		return
	}
	s.note(r)
	s.doubt(r)
	s.metrics.faults.Inc()
	attrs := []any{"replica", r.String(), "reason", reason, "applied", r.applied.Load(), "commit", r.commit.Load()}
	if stack != nil {
		attrs = append(attrs, "stack", string(stack))
	}
	s.log.Error("replica faulted; it stays stopped until it is replaced", attrs...)
	if s.cfg.Fault != nil {
		s.cfg.Fault(r.shard, r.id, reason)
	}
}

// cleanUp answers everything that waits at a faulted replica and forgets its raft group.
func (w *worker) cleanUp(r *replica) {
	if r.worker.rn == nil {
		return
	}
	why, _ := r.faultReason()
	r.dispose(wire.Failed, why, errors.New(why))
	r.dropHanded(why)
	r.worker.log.Close() // its share of the entry cache
	r.worker.rn, r.worker.ready, r.worker.held, r.worker.sending = nil, underWay{}, nil, nil
}

// dispose ends a replica: requests that never were proposed get code, which must be a definite one, proposed ones
// Ambiguous, unless the shard was merged away, which decides them all. The caller owns the worker's state.
func (r *replica) dispose(code wire.Code, reason string, err error) {
	rw := &r.worker
	if rw.disposed {
		return
	}
	rw.disposed = true
	s := r.store
	r.in.Lock()
	r.in.closed, r.in.reason = code, reason
	seldom := r.in.takeSeldomLocked()
	transfers := slices.Concat(rw.asked, seldom.transfers)
	rw.asked = nil
	calls := slices.Concat(rw.calls, seldom.calls)
	rw.calls = nil
	r.in.confs = nil
	s.used.inbox.Add(-r.in.msgBytes)
	r.in.msgs, r.in.msgBytes = nil, 0
	r.takeRequestsLocked()
	r.in.Unlock()

	r.wakeUp()
	old := r.lead.Swap(&leadership{term: rw.term})
	s.note(r) // the one of the fault may have been looked at before this
	r.lease.Store(nil)
	if rw.leads {
		s.release(r, old.term)
	}
	if old.leads {
		s.metrics.leaders.Dec()
	}
	never, open := answerText(code, reason), answerText(wire.Ambiguous, reason)
	if a := r.merged.Load(); a != nil {
		never, open = *a, *a
	}
	r.refuseWrites(never)
	r.refuseReads(never)
	r.wait.Lock()
	confirmed := r.wait.reads
	r.wait.reads, r.wait.ended = nil, &never
	r.wait.Unlock()
	r.endFar(never)
	for _, c := range confirmed {
		r.completeReads(c.reqs, never)
	}
	for _, p := range rw.unbound {
		s.settle(r, p, open)
	}
	for _, p := range rw.pending {
		s.settle(r, p, open)
	}
	rw.unbound, rw.pending = nil, nil
	r.endMembership(err)
	if rw.transfer != nil {
		rw.transfer.finish(0, err)
		rw.transfer = nil
	}
	for _, t := range transfers {
		t.done(0, err)
	}
	for _, f := range calls {
		f(r) // they see a disposed replica; whoever waits for them is let go
	}
}
