package shard

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// Freeze: the first step of a merge of R into its left neighbour L. Ask: R's leader checks both epochs, that the two are
// neighbours on the same stores, and that every replica of R keeps up, since each has to confirm. Propose: one boundary
// entry; from here on this leader holds its writes back. Apply: every replica of R by itself, alike. Commit: one synced
// batch, so that who says that he is frozen cannot forget it. Publish: R refuses reads, writes, changes of replicas and
// splits, until it is thawed (thaw.go) or merged away (merge.go). A read looks at the freeze after it has opened its
// view (V6): a view that is older than the freeze is older than anything that L does with the range. Transfers of the
// leadership go on, and each leader of a frozen shard sees to it that the merge is decided. A crash before Commit finds
// the entry in the log; one after it the shard frozen.

const freezeCommandName = "freeze"

// Freeze stops a shard that this store leads for a merge and returns the index of that in its log, with the descriptor
// that goes into CommitMerge, once it is applied here. It is idempotent: a shard that is frozen for this merge already is
// the result. Errors: *NotFoundError, *NotLeaderError, *FaultedError, *BoundaryError (refused, definitely),
// ErrAmbiguousBoundary (proposed, and the leadership was lost or ctx ended), ErrStopping.
func (s *Store) Freeze(
	ctx context.Context, shard base.ShardID, f wire.Freeze,
) (index uint64, d *base.Descriptor, err error) {
	d, index, err = s.onLeader(ctx, shard, freezeCommandName, func(w *worker, r *replica, done boundaryDone) {
		w.startFreeze(r, f, done)
	})
	return index, d, err
}

// boundaryDone takes the outcome of a boundary command: the descriptor after it and its index. It is called once, on the
// worker, and must not block.
type boundaryDone func(d *base.Descriptor, index uint64, err error)

// onLeader runs start on the worker of a shard that this store leads and waits for what it comes to.
func (s *Store) onLeader(
	ctx context.Context, shard base.ShardID, command string, start func(w *worker, r *replica, done boundaryDone),
) (*base.Descriptor, uint64, error) {
	r, err := s.find(shard)
	if err != nil {
		return nil, 0, err
	}
	type result struct {
		d     *base.Descriptor
		index uint64
		err   error
	}
	ch := make(chan result, 1)
	done := func(d *base.Descriptor, index uint64, err error) { ch <- result{d, index, err} }
	ask := func(r *replica) {
		w := s.workerOf(shard)
		if err := w.mayPropose(r, command); err != nil {
			done(nil, 0, err)
			return
		}
		start(w, r, done)
	}
	if !s.call(r, ask) {
		return nil, 0, ErrStopping
	}
	select {
	case res := <-ch:
		return res.d, res.index, res.err
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("%s %s: %w: %w", command, shard, ErrAmbiguousBoundary, ctx.Err())
	}
}

// mayPropose says why a replica cannot take a boundary command now. It runs on the worker.
func (w *worker) mayPropose(r *replica, command string) error {
	rw := &r.worker
	if rw.disposed || rw.rn == nil {
		return r.endError()
	}
	st := rw.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || rw.nonvoter {
		return r.notLeaderError(st.Lead)
	}
	switch why := w.confBusy(r, &st); {
	case isJoint(r.desc.Load()):
		why = "the shard is in a joint configuration, which its leader is about to leave"
		fallthrough
	case why != "":
		return &BoundaryError{Shard: r.shard, Command: command, Reason: why, Retry: true}
	}
	return nil
}

func (w *worker) startFreeze(r *replica, f wire.Freeze, done boundaryDone) {
	st, d := r.appliedState(), r.desc.Load()
	if have := st.Freeze; have != nil && have.ID == f.ID {
		done(d, have.Index, nil)
		return
	}
	refuse := func(retry bool, format string, args ...any) {
		done(nil, 0, &BoundaryError{
			Shard: r.shard, Command: freezeCommandName, Reason: fmt.Sprintf(format, args...), Retry: retry,
		})
	}
	if _, err := apply.DecideFreeze(d, &st, &f, r.commit.Load()+1); err != nil {
		refuse(false, "%s", err)
		return
	}
	if r.worker.freezing {
		refuse(true, "it is being frozen")
		return
	}
	left, here := w.store.Descriptor(f.Into)
	switch {
	case !here || f.IntoEpoch.Newer(left.Epoch):
		refuse(true, "the replica of %s on this store is not at epoch %s", f.Into, f.IntoEpoch)
		return
	case left.Epoch != f.IntoEpoch:
		refuse(false, "made for epoch %s of %s, which is at %s", f.IntoEpoch, f.Into, left.Epoch)
		return
	}
	if err := apply.Mergeable(left, d); err != nil {
		refuse(false, "%s", err)
		return
	}
	if why := w.lagging(r, d); why != "" {
		refuse(true, "%s: every replica has to confirm", why)
		return
	}
	// Writes behind the entry would only be refused by apply. They wait for what becomes of it.
	r.worker.freezing = true
	ended := func(d *base.Descriptor, index uint64, err error) {
		r.worker.freezing = false
		w.store.pool.Enqueue(uint64(r.shard))
		done(d, index, err)
	}
	if err := w.proposeBoundary(r, wire.EntryFreeze, freezeCommandName, f.Append, ended); err != nil {
		ended(nil, 0, err)
	}
}

// lagging names a replica of the group that would hold a freeze up; empty if there is none.
func (w *worker) lagging(r *replica, d *base.Descriptor) (why string) {
	first, _ := r.worker.log.FirstIndex()
	last, commit := r.lastIndex(), r.commit.Load()
	r.worker.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if base.ReplicaID(id) == r.id || why != "" {
			return
		}
		pr.RecentActive = w.isActive(r, id, &pr)
		if lag := lags(&pr, first, last, commit); lag != "" {
			rep, _ := d.Replica(base.ReplicaID(id))
			why = fmt.Sprintf("the replica on %s %s", rep.Store, lag)
		}
	})
	return why
}

// freezeCommand is a Freeze that a replica's apply has come to.
type freezeCommand struct{ solo[wire.Freeze] }

// solo is a boundary command that touches no other shard.
type solo[T any] struct{ cmd T }

func (solo[T]) touches() []base.ShardID        { return nil }
func (solo[T]) othersLocked(*Store) []*replica { return nil }

// decide implements boundaryCommand.
func (c *freezeCommand) decide(h *halt, _ *engine.Batch) (boundaryOutcome, error) {
	st := h.r.machine.Applied()
	next, refused := apply.DecideFreeze(h.r.machine.Descriptor(), &st, &c.cmd, h.entry.Index)
	if refused != nil {
		return boundaryOutcome{refused: refused}, nil
	}
	return boundaryOutcome{applied: &next, after: func() {
		h.store.metrics.freezes.WithLabelValues("frozen").Inc()
		h.store.log.Info("shard frozen for a merge", "replica", h.r.String(), "merge", c.cmd.ID, "into", c.cmd.Into,
			"index", h.entry.Index)
	}}, nil
}

// refusesFrozen answers what waits at a shard that has just been frozen, and what was behind the freeze. It runs on the
// worker.
func (r *replica) refuseFrozen() {
	r.refuseWrites(r.store.frozenAnswer())
	r.refuseReads(r.store.frozenAnswer())
}

// frozenAnswer is what a frozen shard says to reads and writes.
func (s *Store) frozenAnswer() wire.Answer {
	s.metrics.busy.WithLabelValues("frozen").Inc()
	return apply.Frozen()
}

// MergeState is what a local replica knows of a merge that its shard may be frozen for.
type MergeState struct {
	Replica base.ReplicaID
	Applied uint64
	Desc    *base.Descriptor
	Freeze  *engine.Freeze // nil: it is not frozen. On disk, synced
}

// Confirms reports whether the replica stands frozen for a merge since the index.
func (m *MergeState) Confirms(id, index uint64) bool {
	return m.Freeze != nil && m.Freeze.ID == id && m.Freeze.Index == index
}

// MergeState returns the state of a local replica. Errors: *NotFoundError, *FaultedError.
func (s *Store) MergeState(shard base.ShardID) (MergeState, error) {
	r, err := s.find(shard)
	if err != nil {
		return MergeState{}, err
	}
	return r.mergeState(), nil
}

func (r *replica) mergeState() MergeState {
	return MergeState{Replica: r.id, Applied: r.applied.Load(), Desc: r.desc.Load(), Freeze: r.frozen.Load()}
}

// AwaitFreeze waits until the local replica confirms a freeze at an index or is past it without, or for as long as wait
// says, and returns its state then. Errors: those of MergeState, or ctx's.
func (s *Store) AwaitFreeze(
	ctx context.Context, shard base.ShardID, id, index uint64, wait time.Duration,
) (MergeState, error) {
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		ended := s.watchBoundary(shard)
		st, err := s.MergeState(shard)
		if err != nil || st.Confirms(id, index) || st.Applied >= index {
			return st, err
		}
		select {
		case <-ended:
		case <-limit.C:
			return st, nil
		case <-ctx.Done():
			return st, fmt.Errorf("freeze of %s: %w", shard, ctx.Err())
		}
	}
}

// watchBoundary returns a channel that is closed when the next boundary step of a shard is visible here.
func (s *Store) watchBoundary(shard base.ShardID) <-chan struct{} {
	s.watch.Lock()
	defer s.watch.Unlock()
	ch := s.watch.shards[shard]
	if ch == nil {
		ch = make(chan struct{})
		s.watch.shards[shard] = ch
	}
	return ch
}

// tellWatchers lets go of who waits for a boundary step of a shard.
func (s *Store) tellWatchers(shard base.ShardID) {
	s.watch.Lock()
	defer s.watch.Unlock()
	if ch := s.watch.shards[shard]; ch != nil {
		close(ch)
		delete(s.watch.shards, shard)
	}
}
