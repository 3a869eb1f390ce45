package shard

import (
	"bytes"
	"context"
	"fmt"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// Merge of R into its left neighbour L, once R is frozen (freeze.go) and every replica of it has confirmed that. L's log
// decides: CommitMerge and AbortMerge both carry L's exact Epoch and both change it, so that of one merge it takes one
// of them (decision 0013).
//
// CommitMerge. Ask: L's leader checks the command against its own replicas of both. Propose: one boundary entry. Apply:
// R's local replica stands still. Commit: one synced batch with L's descriptor and applied state, R's sessions, which
// are L's from now on, and R's mark: merged away for ever. R's records go, its data stays where it is. Publish: R
// vanishes and L grows under one lock, and whoever waits at R is sent to L. A crash before Commit leaves both, frozen, and
// the entry in L's log; one after it L alone.
//
// A replica of R that is not frozen by exactly that entry of its log has not confirmed, or this store lost what it had
// confirmed: L's replica is faulted, since it cannot have R's data. It is never taken for something to refuse, for the
// others have not refused.
//
// AbortMerge changes L's Version and nothing else. R is thawed by its own leader (thaw.go).

const (
	commitMergeName = "merge"
	abortMergeName  = "abort merge"
)

// CommitMerge has the log of a shard that this store leads take in its right neighbour, which every replica of it has
// confirmed to be frozen (MergeState, on each of its stores), and returns the descriptor once that is applied here.
// Errors are those of Freeze; after ErrAmbiguousBoundary, and after a refusal because of the epoch, MergeDecision says
// what the merge has come to.
func (s *Store) CommitMerge(ctx context.Context, left base.ShardID, c *wire.CommitMerge) (*base.Descriptor, error) {
	d, _, err := s.onLeader(ctx, left, commitMergeName, func(w *worker, r *replica, done boundaryDone) {
		if err := w.store.checkCommitMerge(r, c); err != nil {
			done(nil, 0, err)
		} else if err := w.proposeBoundary(r, wire.EntryCommitMerge, commitMergeName, c.Append, done); err != nil {
			done(nil, 0, err)
		}
	})
	return d, err
}

// checkCommitMerge refuses what apply would, and what would make it fault replicas.
func (s *Store) checkCommitMerge(l *replica, c *wire.CommitMerge) error {
	refuse := func(retry bool, format string, args ...any) error {
		return &BoundaryError{
			Shard: l.shard, Command: commitMergeName, Reason: fmt.Sprintf(format, args...), Retry: retry,
		}
	}
	if c.Right == nil {
		return refuse(false, "no right-hand shard is given")
	}
	if err := c.Right.Validate(); err != nil {
		return refuse(false, "%s", err)
	}
	st := l.appliedState()
	if _, err := apply.DecideCommitMerge(l.desc.Load(), &st, c); err != nil {
		return refuse(false, "%s", err)
	}
	r, err := s.find(c.Right.Shard)
	if err != nil {
		return refuse(true, "%s", err)
	}
	have := r.mergeState()
	if !have.Confirms(c.ID, c.Frozen) {
		return refuse(false, "%s is not frozen at index %d for merge %d on this store: %+v", r, c.Frozen, c.ID, have.Freeze)
	}
	if err := fits(l.shard, c, have.Freeze, have.Desc); err != nil {
		return refuse(false, "%s", err)
	}
	return nil
}

// fits compares a CommitMerge with what R was frozen for. Of a replica that stands frozen by the entry that the command
// names, all of it is the same everywhere.
func fits(left base.ShardID, c *wire.CommitMerge, f *engine.Freeze, right *base.Descriptor) error {
	switch {
	case f.Into != left || f.IntoEpoch != c.Epoch:
		return fmt.Errorf("%s was frozen to be merged into %s at epoch %s, not %s at %s",
			right.Shard, f.Into, f.IntoEpoch, left, c.Epoch)
	case !bytes.Equal(right.Append(nil), c.Right.Append(nil)):
		return fmt.Errorf("%s was frozen as %s, not %s", right.Shard, right, c.Right)
	}
	return nil
}

// commitCommand is a CommitMerge that a replica's apply has come to.
type commitCommand struct {
	*wire.CommitMerge
	right *replica // stands still
}

func (c *commitCommand) touches() []base.ShardID { return []base.ShardID{c.Right.Shard} }

func (c *commitCommand) othersLocked(s *Store) []*replica {
	if c.right = s.mu.replicas[c.Right.Shard]; c.right == nil {
		return nil
	}
	return []*replica{c.right}
}

// decide implements boundaryCommand.
func (c *commitCommand) decide(h *halt, b *engine.Batch) (boundaryOutcome, error) {
	l, s := h.r, h.store
	d, st := l.machine.Descriptor(), l.machine.Applied()
	wide, refused := apply.DecideCommitMerge(d, &st, c.CommitMerge)
	if refused != nil {
		return boundaryOutcome{refused: refused}, nil
	}
	r := c.right
	name := fmt.Sprintf("merge %d of %s at %d", c.ID, c.Right.Shard, c.Frozen)
	if r == nil || r.uninitialised() {
		return boundaryOutcome{}, fmt.Errorf("%s: this store has no replica of it", name)
	}
	if why, bad := r.faultReason(); bad {
		return boundaryOutcome{}, fmt.Errorf("%s: replica %s is faulted: %s", name, r, why)
	}
	right, rd := r.appliedState(), r.desc.Load()
	if f := right.Freeze; f == nil || f.ID != c.ID || f.Index != c.Frozen {
		return boundaryOutcome{}, fmt.Errorf("%s: replica %s, applied to %d, is not frozen so: %+v", name, r, right.Index, f)
	}
	if err := fits(l.shard, c.CommitMerge, right.Freeze, rd); err != nil {
		return boundaryOutcome{refused: err}, nil
	}
	next := apply.MergeStates(d, &st, &right, c.CommitMerge)
	b.MergeReplica(r.shard, l.shard)
	return boundaryOutcome{
		applied: &next, desc: wide,
		publish: func(ownLocked func()) { s.publishMerged(r, l, ownLocked) },
		after: func() {
			s.metrics.merges.WithLabelValues("committed").Inc()
			s.log.Info("shard merged", "replica", r.String(), "merge", c.ID, "into", wide.String(), "index", h.entry.Index)
			s.tellWatchers(r.shard)
			s.wakeFrozenInto(r.shard, l.shard)
			if s.cfg.OnMerge != nil {
				s.cfg.OnMerge(wide, r.shard)
			}
		},
	}, nil
}

// publishMerged takes R out of the maps and makes L as wide as it is on disk.
func (s *Store) publishMerged(r, l *replica, ownLocked func()) {
	s.mu.Lock()
	if s.mu.replicas[r.shard] == r {
		delete(s.mu.replicas, r.shard)
		s.mu.ranges.remove(r)
		s.peers.changed()
		s.noteGone(r.shard)
	}
	s.buryLocked(r.shard, engine.ReplicaMark{NextReplicaID: engine.MergedAway})
	ownLocked()
	// Nothing behind the freeze had any effect, and nothing will: whoever still waits may as well be told.
	answer := wire.Answer{Code: wire.EpochMismatch, Payload: wire.AppendDescriptors(nil, l.desc.Load())}
	r.merged.Store(&answer)
	w := s.workerOf(r.shard)
	w.mu.Lock()
	w.mu.left = append(w.mu.left, leaving{
		r: r, code: wire.ShardNotFound, reason: "merged into " + l.shard.String(), err: &NotFoundError{Shard: r.shard},
	})
	w.mu.Unlock()
	s.mu.Unlock()
	l.absorbLoad(r)
	s.pool.Enqueue(w.control)
}

// AbortMerge has the log of a shard that this store leads decide against a merge, and returns what the merge has come to
// then: committed, if that was quicker. Errors are those of Freeze; a *BoundaryError means that the log could not decide
// and that MergeDecision has nothing final to say either.
func (s *Store) AbortMerge(ctx context.Context, left base.ShardID, a wire.AbortMerge) (MergeOutcome, error) {
	if out, err := s.MergeDecision(left, a.ID, a.Epoch); err != nil || out.Final() {
		return out, err
	}
	_, _, err := s.onLeader(ctx, left, abortMergeName, func(w *worker, r *replica, done boundaryDone) {
		if err := w.proposeBoundary(r, wire.EntryAbortMerge, abortMergeName, a.Append, done); err != nil {
			done(nil, 0, err)
		}
	})
	if err == nil {
		return apply.MergeAborted, nil
	}
	if out, lost := s.MergeDecision(left, a.ID, a.Epoch); lost == nil && out.Final() {
		return out, nil
	}
	return apply.MergeUnknown, err
}

// abortCommand is an AbortMerge that a replica's apply has come to.
type abortCommand struct{ solo[wire.AbortMerge] }

// decide implements boundaryCommand.
func (c *abortCommand) decide(h *halt, _ *engine.Batch) (boundaryOutcome, error) {
	l, s := h.r, h.store
	st := l.machine.Applied()
	d, next, refused := apply.DecideAbortMerge(l.machine.Descriptor(), &st, &c.cmd)
	if refused != nil {
		return boundaryOutcome{refused: refused}, nil
	}
	return boundaryOutcome{applied: &next, desc: d, after: func() {
		s.metrics.merges.WithLabelValues("aborted").Inc()
		s.log.Info("merge aborted", "replica", l.String(), "merge", c.cmd.ID, "of", c.cmd.Right, "index", h.entry.Index)
		s.wakeFrozenInto(l.shard, 0)
	}}, nil
}

// MergeOutcome is what became of a merge; see apply.Outcome for why Committed and Aborted can be believed from any
// replica, however far behind.
type MergeOutcome = apply.MergeOutcome

// MergeDecision says what a local replica of L, the left-hand shard, knows of a merge for which R was frozen at L's
// epoch. Only Pending and Unknown depend on how far the replica has come: a leader knows most. Where L was merged away
// itself, the shard that took it in is asked. Errors: *NotFoundError, if neither is here.
func (s *Store) MergeDecision(left base.ShardID, id uint64, epoch base.Epoch) (MergeOutcome, error) {
	f := &engine.Freeze{ID: id, Into: left, IntoEpoch: epoch}
	if l := s.serving(left); l != nil {
		return l.outcomeOf(f), nil
	}
	for _, o := range s.all() {
		if o.uninitialised() {
			continue
		}
		if out := o.outcomeOf(f); out.Final() {
			return out, nil
		}
	}
	return apply.MergeUnknown, &NotFoundError{Shard: left}
}

// outcomeOf reads the descriptor first: it is published after the state, so that a state without the decision never
// meets an epoch that has it.
func (r *replica) outcomeOf(f *engine.Freeze) MergeOutcome {
	d := r.desc.Load()
	st := r.appliedState()
	return apply.Outcome(d, &st, f)
}
