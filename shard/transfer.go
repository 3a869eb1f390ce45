package shard

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Leadership transfer. Ask: the request goes to the leader's worker. Start: once the target is a voter that is
// active and close behind, raft catches it up and tells it to campaign. Watch: the transfer is done when this
// replica learns that the target leads at a higher term. A message lost on the way ends in a time-out counted in
// ticks; raft takes proposals again after one election timeout.

// maxTransferLag is how many entries the target may lack: catching up must take well under an election timeout.
const maxTransferLag = 4096

// transferRequest asks to move the leadership to a store; 0 means whichever voter is the most advanced.
type transferRequest struct {
	to   base.StoreID
	fit  func(base.StoreID) bool      // for whichever voter: which stores it may be on; nil for all
	done func(term uint64, err error) // called once, must not block
}

type transfer struct {
	shard   base.ShardID
	to      base.StoreID // 0 until chosen
	target  base.ReplicaID
	any     bool
	fit     func(base.StoreID) bool
	term    uint64 // at the start
	started bool
	ticks   int    // left
	reason  string // why it has not started yet
	waiters []func(term uint64, err error)
}

func (t *transfer) finish(term uint64, err error) {
	for _, f := range t.waiters {
		f(term, err)
	}
}

func (t *transfer) fail(reason string) {
	t.finish(0, &TransferError{Shard: t.shard, To: t.to, Reason: reason})
}

// startTransfer takes a request on the worker.
func (w *worker) startTransfer(r *replica, req transferRequest) {
	if r.uninitialised() {
		req.done(0, &NotLeaderError{Shard: r.shard})
		return
	}
	st := r.worker.rn.BasicStatus()
	d := r.desc.Load()
	switch {
	case st.RaftState != raft.StateLeader:
		e := &NotLeaderError{Shard: r.shard}
		if st.Lead != 0 {
			e.Leader = r.storeOf(base.ReplicaID(st.Lead))
		}
		req.done(0, e)
		return
	case req.to == w.store.cfg.Store:
		req.done(st.Term, nil)
		return
	}
	if t := r.worker.transfer; t != nil {
		if t.to == req.to || req.to == 0 {
			t.waiters = append(t.waiters, req.done)
			return
		}
		req.done(0, &TransferError{Shard: r.shard, To: req.to, Reason: fmt.Sprintf("a transfer to %s is under way", t.to)})
		return
	}
	t := &transfer{
		shard: r.shard, to: req.to, any: req.to == 0, fit: req.fit, ticks: w.store.cfg.ElectionTick,
		waiters: []func(uint64, error){req.done},
	}
	if !t.any {
		rep, ok := d.ReplicaOn(req.to)
		if !ok {
			t.fail("the shard has no replica there")
			return
		}
		t.target = rep.Replica
	}
	r.worker.transfer = t
	w.tryTransfer(r)
}

// tryTransfer starts the pending transfer if the target qualifies now. Right after an election, or after raft's own
// activity check, a healthy target may take a heartbeat to qualify.
func (w *worker) tryTransfer(r *replica) {
	t := r.worker.transfer
	d := r.desc.Load()
	first, _ := r.worker.log.FirstIndex()
	last := r.lastIndex()
	var best tracker.Progress
	var bestID base.ReplicaID
	var bestRole base.Role
	others := false
	r.worker.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		rid := base.ReplicaID(id)
		if rid == r.id {
			return
		}
		rep, _ := d.Replica(rid)
		pr.RecentActive = w.isActive(r, id, &pr)
		if !t.any {
			if rid == t.target {
				best, bestID, bestRole = pr, rid, rep.Role
			}
			return
		}
		if typ != raft.ProgressTypePeer || rep.Role == base.RoleOutgoing || (t.fit != nil && !t.fit(rep.Store)) {
			return
		}
		others = true
		if !pr.RecentActive || !follows(&pr, last) || needsSnapshot(&pr, first) {
			return
		}
		// One that is a voter for certain goes before one that may not have heard yet that it becomes one.
		stays := rep.Role == base.RoleVoter
		if bestID == 0 || (stays && bestRole != base.RoleVoter) ||
			(stays == (bestRole == base.RoleVoter) && pr.Match > best.Match) {
			best, bestID, bestRole = pr, rid, rep.Role
		}
	})
	switch {
	case t.any && !others:
		w.endTransfer(r, reasonAlone)
		return
	case t.any && bestID == 0:
		t.reason = "no other voter is active and caught up"
		return
	case bestID == 0:
		w.endTransfer(r, "the target is not in the group's configuration")
		return
	case best.IsLearner:
		w.endTransfer(r, "the target is a learner")
		return
	case bestRole == base.RoleOutgoing:
		w.endTransfer(r, "the target becomes a learner when the shard leaves its joint configuration")
		return
	case needsSnapshot(&best, first):
		w.endTransfer(r, "the target needs a snapshot first")
		return
	case !best.RecentActive:
		t.reason = "the target has not been heard of recently"
		return
	case !follows(&best, last):
		t.reason = fmt.Sprintf("the target is in state %s, not replicating", best.State)
		return
	case best.Match+maxTransferLag < last:
		t.reason = fmt.Sprintf("the target lacks %d entries, more than %d", last-best.Match, maxTransferLag)
		return
	}
	t.target = bestID
	t.to = r.storeOf(bestID)
	t.started, t.term = true, r.worker.rn.BasicStatus().Term
	t.ticks = 2 * w.store.cfg.ElectionTick
	r.worker.rn.TransferLeader(uint64(bestID))
	w.store.log.Debug("leadership transfer started", "replica", r.String(), "to", t.to, "term", t.term)
}

// follows reports whether a replica keeps up with a leader whose log ends at last. One that was lost for a moment is probed
// until an append is answered, and an idle group has none to send: if it has everything it is as good as replicating.
func follows(pr *tracker.Progress, last uint64) bool {
	return pr.State == tracker.StateReplicate || pr.Match == last
}

// tickTransfer retries a transfer that has not started and gives up one that takes too long.
func (w *worker) tickTransfer(r *replica, ticks int) {
	t := r.worker.transfer
	if ticks == 0 {
		return
	}
	if t.ticks -= ticks; t.ticks <= 0 {
		reason := t.reason
		if t.started {
			reason = reasonLate
		}
		w.endTransfer(r, reason)
		return
	}
	if !t.started {
		if r.worker.rn.BasicStatus().RaftState != raft.StateLeader {
			return // publishLeader ends it
		}
		w.tryTransfer(r)
	}
}

func (w *worker) endTransfer(r *replica, reason string) {
	t := r.worker.transfer
	r.worker.transfer = nil
	t.fail(reason)
}

// handOver gives the leadership to whoever is fit for it, because this store's disk stalls (L2). It needs no sync, since
// the target raises the term. A group with a Ready in flight gets no ticks, so its followers elect without being asked.
func (w *worker) handOver(r *replica) {
	if r.worker.transfer == nil && r.worker.rn.BasicStatus().RaftState == raft.StateLeader {
		w.startTransfer(r, transferRequest{done: func(uint64, error) {}})
	}
}

// transferSaw follows the leadership while a transfer is pending.
func (w *worker) transferSaw(r *replica, l *leadership) {
	t := r.worker.transfer
	switch {
	case l.leader == 0 || l.leader == r.id:
		return // the election is on, or nothing has happened yet
	case t.started && l.leader == t.target && l.term > t.term:
		r.worker.transfer = nil
		t.finish(l.term, nil)
	default:
		r.worker.transfer = nil
		t.finish(0, &NotLeaderError{Shard: t.shard, Leader: l.store})
	}
}

// requestTransfer queues a transfer; done is called exactly once unless an error is returned.
func (s *Store) requestTransfer(shard base.ShardID, to base.StoreID, done func(uint64, error)) error {
	return s.queueTransfer(shard, transferRequest{to: to, done: done})
}

func (s *Store) queueTransfer(shard base.ShardID, req transferRequest) error {
	r, err := s.find(shard)
	if err != nil {
		return err
	}
	r.in.Lock()
	open := r.in.closed == wire.OK
	if open {
		in := r.in.seldomLocked()
		in.transfers = append(in.transfers, req)
	}
	r.in.Unlock()
	if !open {
		return ErrStopping
	}
	s.pool.Enqueue(uint64(shard))
	return nil
}

type transferResult struct {
	term uint64
	err  error
}

// Transfer moves a shard's leadership from this store to another one and returns the new leader's term once it leads.
// Errors: *NotFoundError, *FaultedError, *NotLeaderError, *TransferError (the target is unknown, a learner, inactive,
// lagging or did not take over), ErrStopping, or ctx's; after ctx's the transfer may still happen.
func (s *Store) Transfer(ctx context.Context, shard base.ShardID, to base.StoreID) (term uint64, err error) {
	ch := make(chan transferResult, 1)
	err = s.requestTransfer(shard, to, func(term uint64, err error) { ch <- transferResult{term, err} })
	if err != nil {
		return 0, err
	}
	select {
	case res := <-ch:
		return res.term, res.err
	case <-ctx.Done():
		return 0, fmt.Errorf("transfer leadership of %s to %s: %w", shard, to, ctx.Err())
	}
}

const (
	reasonAlone = "the shard has no other voter that may lead"
	reasonLate  = "the target did not take over in time"
)
