package shard

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// Recovery of a shard that has lost its quorum for ever: one replica becomes its only voter. It is the one operation
// that breaks what raft promises, on purpose, so the caller answers for three things: the lost stores are fenced on
// every store that is left, this replica's log is the furthest of those left, and no other replica is chosen.
//
// Settle: everything in the log is taken for committed, what no quorum has confirmed as well, since it may have been
// acknowledged by stores that are gone. The HardState says so, synced, and the replica is opened again and applies it,
// splits, merges and conf changes included; but not the removal of this replica, and nothing behind that. Renew: with
// all of it applied, one synced batch gives it the new descriptor, the configuration with itself alone, a mark, and a
// term above every one seen. All shards of a recovery are settled before the first is renewed, or any replica dropped: a
// merge in one log needs the frozen replica of the other shard on the same store. Publish: a replica over that state takes the place of the old one and leads at once. What
// the log still holds behind that is refused by its epoch.
//
// A crash before Settle, or before Renew, leaves a replica without a quorum, and the call is repeated; after Renew the
// repeated call finds the descriptor and does nothing. The new descriptor gives out higher replica ids and lists no
// other replica, so that it proves to every other one that it was removed (I5).

// RecoverError says why a replica cannot be made its shard's only voter. Nothing has changed but that its log may have
// been settled.
type RecoverError struct {
	Shard   base.ShardID
	Replica base.ReplicaID
	Reason  string
}

func (e *RecoverError) Error() string {
	return fmt.Sprintf("recover replica %s: %s", base.ReplicaName(e.Shard, e.Replica), e.Reason)
}

// recoverPause is the time between two looks at a replica that has not applied its log yet.
const recoverPause = 10 * time.Millisecond

// Recover makes a replica the only voter of its shard, under descriptor d, at a term of at least term. d lists this
// replica alone, is newer in both parts of its epoch, keeps the start of the shard, and may end before it: what lies
// beyond goes, since a newer shard owns it. d was made for version; if the log holds a split or a merge behind that, the
// range is another one now, and the caller has to look again. It returns nil once that is durable and the replica stands for election, or
// if it was so already. Errors: *RecoverError, *NotFoundError, ErrStopping, the engine's, or ctx's; after ctx's it may
// still happen.
func (s *Store) Recover(ctx context.Context, id base.ReplicaID, d *base.Descriptor, version, term uint64) error {
	if d == nil {
		return &RecoverError{Replica: id, Reason: "no descriptor is given"}
	}
	return s.recover(ctx, &renewal{shard: d.Shard, id: id, desc: d.Clone(), version: version, term: term})
}

// Settle takes the log of a replica for committed and returns once all of it is applied. It is the first half of Recover,
// with its errors.
func (s *Store) Settle(ctx context.Context, shard base.ShardID, id base.ReplicaID) error {
	return s.recover(ctx, &renewal{shard: shard, id: id})
}

func (s *Store) recover(ctx context.Context, want *renewal) error {
	type outcome struct {
		again bool
		err   error
	}
	for {
		ch := make(chan outcome, 1)
		busy, err := s.recoverStep(want, func(again bool, err error) { ch <- outcome{again, err} })
		if err != nil {
			return err
		}
		pause := time.NewTimer(recoverPause)
		select {
		case out := <-ch:
			if !out.again {
				pause.Stop()
				return out.err
			}
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		case <-busy:
		case <-ctx.Done():
		}
		pause.Stop()
		if ctx.Err() != nil {
			return fmt.Errorf("recover replica %s: %w", base.ReplicaName(want.shard, want.id), ctx.Err())
		}
	}
}

// renewal is a Recover or Settle under way.
type renewal struct {
	op      *boundary
	r       *replica
	shard   base.ShardID
	id      base.ReplicaID
	desc    *base.Descriptor // nil: only settle
	version uint64           // that desc was made for
	term    uint64
	again   bool // the log was settled, or has not been applied: another step is needed
}

// recoverStep takes one step; done is called once, unless there is an error or another step of the shard to wait for.
// again: the replica has to apply its log first.
func (s *Store) recoverStep(want *renewal, done func(again bool, err error)) (busy <-chan struct{}, err error) {
	fail := func(format string, args ...any) (<-chan struct{}, error) {
		return nil, &RecoverError{Shard: want.shard, Replica: want.id, Reason: fmt.Sprintf(format, args...)}
	}
	if d := want.desc; d != nil {
		if err := d.Validate(); err != nil {
			return fail("%s", err)
		}
		self, ok := d.Replica(want.id)
		if !ok || len(d.Replicas) != 1 || self.Store != s.cfg.Store || self.Role != base.RoleVoter {
			return fail("%s does not list it as the only voter", d)
		}
	}
	step := *want
	in := &step
	in.op = newBoundary(func(err error) { done(in.again, err) }, nil, in.shard)
	s.mu.Lock()
	r, other := s.mu.replicas[in.shard], s.inTheWayLocked(in.op)
	switch {
	case s.mu.stopped:
		err = ErrStopping
	case other != nil:
		busy = other.ended
	case r == nil:
		err = &NotFoundError{Shard: in.shard}
	case r.id != in.id:
		_, err = fail("replica %s is here", r.id)
	case r.uninitialised():
		_, err = fail("it is uninitialised")
	default:
		in.r = r
		s.reserveLocked(in.op)
	}
	s.mu.Unlock()
	if busy != nil || err != nil {
		return busy, err
	}
	s.parkAll(in.op, []*replica{r}, func(ok bool) {
		s.life.post(func() {
			if !ok {
				s.finish(in.op, &NotFoundError{Shard: in.shard})
			} else if s.begin(in.op) {
				s.renew(in)
			}
		})
	})
	return nil, nil
}

// renew decides, while the replica stands still, what the next step is, and takes it.
func (s *Store) renew(in *renewal) {
	r := in.r
	fail := func(format string, args ...any) {
		s.finish(in.op, &RecoverError{Shard: r.shard, Replica: r.id, Reason: fmt.Sprintf(format, args...)})
	}
	if why, bad := r.faultReason(); bad {
		fail("it is faulted: %s", why)
		return
	}
	old := r.desc.Load()
	switch d := in.desc; {
	case d == nil:
	case sameDescriptor(old, d):
		s.finish(in.op, nil) // done before
		return
	case d.Epoch.ConfVer <= old.Epoch.ConfVer || d.Epoch.Version <= old.Epoch.Version:
		fail("epoch %s is not above %s", d.Epoch, old.Epoch)
		return
	case d.NextReplicaID < old.NextReplicaID:
		fail("replica ids from %s are given out already", old.NextReplicaID)
		return
	}
	if f := r.frozen.Load(); f != nil && s.mayMerge(f) {
		fail("merge %d may be in the log of %s here, which needs it as it is: that one comes first", f.ID, f.Into)
		return
	}
	target, err := r.settledEnd()
	if err != nil {
		fail("read its log: %s", err)
		return
	}
	st := r.worker.rn.BasicStatus()
	switch applied, d := r.appliedState(), in.desc; {
	case applied.Index >= target && d == nil:
		s.finish(in.op, nil)
	case applied.Index >= target && old.Epoch.Version != in.version:
		fail("its log has brought it to %s; the new descriptor was made for version %d", old, in.version)
	case applied.Index >= target && (string(d.Start) != string(old.Start) || string(d.End) > string(old.End)):
		fail("%s is not in the range of %s", d, old)
	case applied.Index >= target:
		s.commitRenewal(in, applied, max(st.Term+1, in.term))
	case r.commit.Load() >= target:
		in.again = true // it only has to apply
		s.finish(in.op, nil)
	default:
		s.settleLog(in, raftpb.HardState{Term: st.Term, Vote: st.Vote, Commit: target})
	}
}

// mayMerge reports whether a local replica of L has entries to apply that may bring the merge that a freeze is for.
func (s *Store) mayMerge(f *engine.Freeze) bool {
	l := s.serving(f.Into)
	if l == nil || !s.awaitsMerge(f) {
		return false
	}
	_, last := l.worker.log.Bounds()
	return l.applied.Load() < last
}

func sameDescriptor(a, b *base.Descriptor) bool {
	return a.Equal(b)
}

// settledEnd returns up to where the log is taken for committed: to its end, or to what comes before the removal of this
// very replica. The replica stands still.
func (r *replica) settledEnd() (uint64, error) {
	cfg := &r.store.cfg
	_, last := r.worker.log.Bounds()
	for at := r.applied.Load() + 1; at <= last; {
		ents, err := r.worker.log.Entries(at, last+1, cfg.MaxSizePerMsg)
		if err != nil {
			return 0, err
		}
		for i := range ents {
			if r.removes(&ents[i]) {
				return ents[i].Index - 1, nil
			}
		}
		at += uint64(len(ents))
	}
	return last, nil
}

// removes reports whether an entry asks for the removal of this replica.
func (r *replica) removes(e *raftpb.Entry) bool {
	if e.Type == raftpb.EntryNormal {
		return false
	}
	cc, err := decodeConf(e)
	if err != nil {
		return false // apply has its say on it
	}
	return slices.ContainsFunc(cc.Changes, func(c raftpb.ConfChangeSingle) bool {
		return c.Type == raftpb.ConfChangeRemoveNode && base.ReplicaID(c.NodeID) == r.id
	})
}

// settleLog takes the log for committed and opens the replica again.
func (s *Store) settleLog(in *renewal, hard raftpb.HardState) {
	r := in.r
	b := s.engine.NewBatch()
	b.SetHardState(r.shard, hard)
	err := s.commitBoundary(b, func() {
		s.log.Warn("log taken for committed without a quorum", "replica", r.String(), "commit", hard.Commit,
			"was", r.commit.Load())
		in.again = true
		s.reopen(in, false)
	})
	if err != nil {
		s.finish(in.op, fmt.Errorf("recover replica %s: %w", r, err))
	}
}

// commitRenewal writes the new beginning of the shard.
func (s *Store) commitRenewal(in *renewal, applied engine.AppliedState, term uint64) {
	r, d, old := in.r, in.desc, in.r.desc.Load()
	applied.Conf = engine.ConfStateOf(d)
	b := s.engine.NewBatch()
	b.SetMark(r.shard, engine.ReplicaMark{ReplicaID: r.id, NextReplicaID: d.NextReplicaID})
	b.SetDescriptor(d)
	b.SetApplied(r.shard, &applied)
	b.SetHardState(r.shard, raftpb.HardState{Term: term, Commit: max(r.commit.Load(), applied.Index)})
	cut := string(d.End) < string(old.End)
	if cut {
		b.DeleteRange(d.End, old.End)
		r.leaving.Store(true) // before it shows: a read that was confirmed earlier must not find the keys gone
	}
	err := s.commitBoundary(b, func() {
		s.log.Warn("replica made the only voter of its shard", "replica", r.String(), "index", applied.Index, "term", term,
			"was", old.String(), "is", d.String())
		s.reopen(in, true)
	})
	if err != nil {
		r.leaving.Store(false)
		s.finish(in.op, fmt.Errorf("recover replica %s: %w", r, err))
	}
}

// reopen puts a replica over the state that is on disk now in the place of the old one. If it cannot be opened, the old
// one is faulted: its state is gone.
func (s *Store) reopen(in *renewal, campaign bool) {
	r := in.r
	st, _, err := s.engine.ReplicaState(r.shard)
	var next *replica
	if err == nil {
		next, err = s.newReplica(st)
	}
	if err != nil {
		s.fault(r, "open the recovered replica: "+err.Error(), nil)
		s.finish(in.op, fmt.Errorf("recover replica %s: %w", r, err))
		return
	}
	if next.in.campaign = campaign; !campaign {
		next.worker.over = r
	}
	s.publish(next, r, "the shard is being recovered")
	s.finish(in.op, nil)
}

// GiveUp removes a replica for good, whatever state it is in, without the proof that RemoveReplica asks for: a recovery
// has decided that its shard is no more, since newer shards own its range. No replica of it will be created here again.
// Errors are those of RemoveReplica.
func (s *Store) GiveUp(ctx context.Context, shard base.ShardID, id base.ReplicaID) error {
	return waitRemoved(ctx, shard, id, func(done func(error)) (<-chan struct{}, error) {
		return s.removeMarked(shard, id, mergedAway, "given up in a recovery: newer shards own its range", done)
	})
}

// Inventory is what a store has of a shard, for whoever plans a recovery.
type Inventory struct {
	Summary
	Commit    uint64
	LastIndex uint64
	LastTerm  uint64 // of the last entry of the log
	// Settled says that everything in the log that a recovery would take for committed is applied.
	Settled bool
	// Changes says that the log has, behind what is applied, a change of replicas.
	Changes bool
	// Silent is the time since the last word of a leader, in ticks of this store.
	Silent time.Duration
	// MergingInto is set while the shard is frozen.
	MergingInto base.ShardID
	// Busy: the replica did not answer in time; what its worker knows is not filled in.
	Busy bool
}

// Inventory returns up to limit replicas of shards above after, by shard.
func (s *Store) Inventory(ctx context.Context, after base.ShardID, limit int) []Inventory {
	var out []Inventory
	var waits []chan Inventory
	for _, r := range s.all() {
		if r.shard <= after {
			continue
		}
		if len(out) == limit {
			break
		}
		inv := Inventory{
			Summary: r.summary(), Commit: r.commit.Load(), Silent: time.Duration(r.silent.Load()) * s.cfg.Tick,
		}
		if f := r.appliedState().Freeze; f != nil {
			inv.MergingInto = f.Into
		}
		var ch chan Inventory
		if inv.Desc != nil && inv.Faulted == "" {
			ch = make(chan Inventory, 1)
			if !s.call(r, func(r *replica) { ch <- r.inventory(inv) }) {
				ch <- inv
			}
		}
		out, waits = append(out, inv), append(waits, ch)
	}
	for i, ch := range waits {
		if ch == nil {
			continue
		}
		select {
		case out[i] = <-ch:
		case <-ctx.Done():
			out[i].Busy = true
		}
	}
	return out
}

// inventory fills in what only the worker knows.
func (r *replica) inventory(inv Inventory) Inventory {
	if r.worker.disposed || r.worker.rn == nil {
		inv.Busy = true // another object takes its place
		return inv
	}
	first, last := r.worker.log.Bounds()
	inv.LastIndex = last
	term, err := r.worker.log.Term(last)
	var end uint64
	if err == nil {
		end, err = r.settledEnd()
	}
	if err != nil {
		inv.Busy = true
		return inv
	}
	inv.LastTerm, inv.Settled = term, r.applied.Load() >= end
	for at := max(r.applied.Load()+1, first); at <= last; {
		ents, err := r.worker.log.Entries(at, last+1, r.store.cfg.MaxSizePerMsg)
		if err != nil {
			inv.Busy = true
			return inv
		}
		for i := range ents {
			inv.Changes = inv.Changes || ents[i].Type != raftpb.EntryNormal
		}
		at += uint64(len(ents))
	}
	return inv
}
