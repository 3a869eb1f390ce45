package shard

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Split. Ask: the leader checks epoch and keys, and that nothing else is under way. Propose: one boundary entry, whose
// command is complete: what the left shard keeps, and the descriptors of the right-hand ones. Apply: boundary.go halts
// the replica at the entry; the command is checked again against the descriptor there, alike on every replica. Commit:
// one synced batch with the left shard's new descriptor and applied state, and the whole first state of every right-hand
// replica; no data moves. Publish: all of it at once, and where the left shard is led, the right-hand ones stand for
// election at once. A crash before Commit leaves the shard undivided and the entry in its log; one after it, both sides.
//
// What this store knows of a right-hand shard decides what becomes of its half (rule I4):
//
//	nothing                             the replica is made
//	uninitialised, the same replica     it is made, and keeps Term and Vote: they are promises
//	initialised                         it came by a snapshot, and is kept
//	a mark or a replica above its id    it was removed meanwhile: the half is dropped, with its data

// SplitSide asks for one right-hand shard: it begins at Start, a routing key, and goes on to the next one's, the last
// to where the shard ended. Share is its part of the statistics, in millionths.
type SplitSide struct {
	ID    base.ShardID
	Start []byte
	Share uint32
}

const splitCommandName = "split"

// Split divides a shard that this store leads and returns the descriptors of all parts once that is applied here. epoch
// is that of the shard as the caller knows it, both parts; rights are ascending. It is idempotent: if the right-hand
// shards are here already, where they should begin, that is its result. Errors: *NotFoundError, *NotLeaderError,
// *FaultedError, *BoundaryError (refused, definitely), ErrAmbiguousBoundary (proposed, and the leadership was lost or ctx
// ended), ErrStopping.
func (s *Store) Split(
	ctx context.Context, shard base.ShardID, epoch base.Epoch, rights []SplitSide,
) (left *base.Descriptor, out []*base.Descriptor, err error) {
	r, err := s.find(shard)
	if err != nil {
		return nil, nil, err
	}
	type result struct {
		left   *base.Descriptor
		rights []*base.Descriptor
		err    error
	}
	ch := make(chan result, 1)
	ask := func(r *replica) {
		s.workerOf(shard).startSplit(r, epoch, rights, func(left *base.Descriptor, rights []*base.Descriptor, err error) {
			ch <- result{left, rights, err}
		})
	}
	if !s.call(r, ask) {
		return nil, nil, ErrStopping
	}
	select {
	case res := <-ch:
		return res.left, res.rights, res.err
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("split %s: %w: %w", shard, ErrAmbiguousBoundary, ctx.Err())
	}
}

// startSplit checks and proposes on the worker. done is called once and must not block.
func (w *worker) startSplit(
	r *replica, epoch base.Epoch, sides []SplitSide, done func(*base.Descriptor, []*base.Descriptor, error),
) {
	refuse := func(retry bool, format string, args ...any) {
		done(nil, nil, &BoundaryError{
			Shard: r.shard, Command: splitCommandName, Reason: fmt.Sprintf(format, args...), Retry: retry,
		})
	}
	if r.worker.disposed || r.worker.rn == nil {
		done(nil, nil, r.endError())
		return
	}
	st := r.worker.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || r.worker.nonvoter {
		done(nil, nil, r.notLeaderError(st.Lead))
		return
	}
	d := r.desc.Load()
	if left, rights, ok := w.store.splitDone(d, sides); ok {
		done(left, rights, nil)
		return
	}
	applied := r.appliedState()
	switch why := w.confBusy(r, &st); {
	case unsplittable(d, &applied) != nil:
		refuse(r.shard != base.MetaShard, "%s", unsplittable(d, &applied))
		return
	case isJoint(d):
		refuse(true, "the shard is in a joint configuration, which its leader is about to leave")
		return
	case why != "":
		refuse(true, "%s", why)
		return
	}
	cmd, err := planSplit(d, epoch, sides)
	if err == nil {
		err = cmd.Validate(d)
	}
	if err != nil {
		refuse(false, "%s", err)
		return
	}
	err = w.proposeBoundary(r, wire.EntrySplit, splitCommandName, cmd.Append,
		func(left *base.Descriptor, _ uint64, err error) {
			if err != nil {
				done(nil, nil, err)
				return
			}
			done(left, descsOf(cmd), nil)
		})
	if err != nil {
		done(nil, nil, err)
	}
}

// unsplittable says why no split of a shard is applied now, whatever it asks for; nil if it may be.
func unsplittable(d *base.Descriptor, st *engine.AppliedState) error {
	switch {
	case d.Shard == base.MetaShard:
		return errors.New("the meta shard is never split")
	case st.Freeze != nil:
		return fmt.Errorf("the shard is frozen, to be merged into %s", st.Freeze.Into)
	}
	return nil
}

// splitDone reports whether a shard already has been divided as asked for, and what its parts are now.
func (s *Store) splitDone(d *base.Descriptor, sides []SplitSide) (left *base.Descriptor, rights []*base.Descriptor, ok bool) {
	for i := range sides {
		right, here := s.Descriptor(sides[i].ID)
		if !here || string(right.Start) != string(sides[i].Start) {
			return nil, nil, false
		}
		rights = append(rights, right)
	}
	return d, rights, len(sides) > 0
}

// planSplit makes the command. Whether it may be is for Validate to say.
func planSplit(d *base.Descriptor, epoch base.Epoch, sides []SplitSide) (*wire.Split, error) {
	if len(sides) == 0 {
		return nil, errors.New("no key is given")
	}
	cmd := &wire.Split{Epoch: epoch, LeftEnd: sides[0].Start}
	for i := range sides {
		right := &base.Descriptor{
			Shard: sides[i].ID, Start: sides[i].Start, End: d.End,
			Epoch: base.Epoch{ConfVer: 1, Version: epoch.Version + 1}, NextReplicaID: base.ReplicaID(len(d.Replicas) + 1),
		}
		if i+1 < len(sides) {
			right.End = sides[i+1].Start
		}
		for j, rep := range d.Replicas {
			right.Replicas = append(right.Replicas, base.ReplicaDesc{
				Replica: base.ReplicaID(j + 1), Store: rep.Store, Role: rep.Role,
			})
		}
		if err := right.Validate(); err != nil { // what apply could not decode faults the replicas
			return nil, err
		}
		cmd.Rights = append(cmd.Rights, wire.SplitRight{Share: sides[i].Share, Desc: right.Clone()})
	}
	if len(cmd.Rights) > wire.MaxSplitRights || len(cmd.LeftEnd) > wire.MaxSplitBound {
		return nil, fmt.Errorf("%d keys, the first of %d bytes: at most %d of %d bytes",
			len(sides), len(cmd.LeftEnd)-1, wire.MaxSplitRights, wire.MaxSplitBound-1)
	}
	return cmd, nil
}

func descsOf(cmd *wire.Split) (out []*base.Descriptor) {
	for i := range cmd.Rights {
		out = append(out, cmd.Rights[i].Desc)
	}
	return out
}

// splitCommand is a split that a replica's apply has come to.
type splitCommand struct {
	*wire.Split
	over map[base.ShardID]*replica // uninitialised replicas of right-hand shards: they stand still
}

func decodeSplit(body []byte) (*splitCommand, error) {
	cmd, err := wire.DecodeSplit(body)
	if err != nil {
		return nil, err
	}
	return &splitCommand{Split: cmd}, nil
}

func (c *splitCommand) touches() (out []base.ShardID) {
	for i := range c.Rights {
		if id := c.Rights[i].Desc.Shard; !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

func (c *splitCommand) othersLocked(s *Store) (others []*replica) {
	c.over = make(map[base.ShardID]*replica)
	for _, id := range c.touches() {
		if r := s.mu.replicas[id]; r != nil && r.uninitialised() {
			c.over[id] = r
			others = append(others, r)
		}
	}
	return others
}

// half is what becomes of one right-hand side on this store.
type half struct {
	desc  *base.Descriptor
	state engine.ReplicaState
	share float64  // of the load, as of the statistics
	over  *replica // takes the place of it
}

// decide implements boundaryCommand.
func (c *splitCommand) decide(h *halt, b *engine.Batch) (boundaryOutcome, error) {
	r, s := h.r, h.store
	d, st := r.machine.Descriptor(), r.machine.Applied()
	if err := c.Validate(d); err != nil {
		return boundaryOutcome{refused: err}, nil
	}
	if err := unsplittable(d, &st); err != nil {
		return boundaryOutcome{refused: err}, nil
	}
	left := c.Left(d)
	whole := st.Stats
	var made []half
	dropped, stays := false, 1.0
	for i := range c.Rights {
		stays -= float64(c.Rights[i].Share) / wire.SplitShares
		right := c.Rights[i].Desc
		share := shareOf(whole, c.Rights[i].Share)
		st.Stats = minus(st.Stats, share)
		self, ok := right.ReplicaOn(s.cfg.Store)
		if !ok {
			return boundaryOutcome{}, fmt.Errorf("split: %s does not list %s", right, s.cfg.Store)
		}
		fate, hard, err := s.fateOf(right, self.Replica)
		if err != nil {
			return boundaryOutcome{}, fmt.Errorf("split: %w", err)
		}
		switch fate {
		case halfDropped:
			if err := s.checkFree(right, r.shard); err != nil {
				return boundaryOutcome{}, fmt.Errorf("split: %w", err)
			}
			dropped = true
			b.DeleteRange(right.Start, right.End)
			s.log.Info("half of a split is dropped: its replica was removed", "replica",
				base.ReplicaName(right.Shard, self.Replica), "range", right.String())
		case halfMade:
			if err := s.checkFree(right, r.shard); err != nil {
				return boundaryOutcome{}, fmt.Errorf("split: %w", err)
			}
			side := engine.SplitRight{Desc: right, Replica: self.Replica, Stamp: st.Stamp, Stats: share, Hard: hard}
			b.SplitReplica(r.shard, side)
			made = append(made, half{
				desc: right, state: side.State(), over: c.over[right.Shard],
				share: float64(c.Rights[i].Share) / wire.SplitShares,
			})
		}
	}
	if dropped {
		r.leaving.Store(true) // a read that was confirmed earlier must not find the keys gone
	}
	leads := false
	return boundaryOutcome{
		applied: &st, desc: left,
		publish: func(ownLocked func()) {
			leads = r.lead.Load().leads
			s.publishSplit(r, made, leads, ownLocked)
			r.shareLoad(max(stays, 0))
			r.leaving.Store(false)
			s.log.Info("shard split", "replica", r.String(), "index", h.entry.Index, "left", left.String(),
				"rights", len(c.Rights))
		},
		after: func() {
			if s.cfg.OnSplit != nil {
				s.cfg.OnSplit(left, descsOf(c.Split), leads)
			}
		},
	}, nil
}

// halfFate is what becomes of a right-hand side on this store.
type halfFate uint8

const (
	halfMade halfFate = iota + 1
	halfKept
	halfDropped
)

// fateOf decides on a right-hand side by what is on disk, where promises are too. The shard is reserved, and an
// uninitialised replica of it stands still.
func (s *Store) fateOf(right *base.Descriptor, id base.ReplicaID) (halfFate, raftpb.HardState, error) {
	none := raftpb.HardState{}
	mark, ok, err := s.engine.Mark(right.Shard)
	if err != nil {
		return 0, none, err
	}
	switch {
	case !ok:
		return halfMade, none, nil
	case mark.ReplicaID == 0 && id < mark.NextReplicaID:
		return halfDropped, none, nil
	case mark.ReplicaID == 0:
		return halfMade, none, nil
	}
	old, _, err := s.engine.ReplicaState(right.Shard)
	switch {
	case err != nil:
		return 0, none, err
	case old.Desc != nil:
		return halfKept, none, nil
	case mark.ReplicaID > id:
		return halfDropped, none, nil
	case mark.ReplicaID < id:
		// No descriptor ever listed it: this one is the first.
		return 0, none, fmt.Errorf("replica %s is here, which is older than the shard",
			base.ReplicaName(right.Shard, mark.ReplicaID))
	}
	return halfMade, old.Hard, nil
}

// checkFree reports an *OverlapError if another replica than that of the shard that is split owns a part of the range:
// live replicas never overlap (rule I3).
func (s *Store) checkFree(right *base.Descriptor, left base.ShardID) (err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.mu.ranges.overlapping(right.Start, right.End, func(d *base.Descriptor) bool {
		if d.Shard != left {
			err = &OverlapError{New: right, Old: d}
		}
		return err == nil
	})
	return err
}

// publishSplit makes both sides of a committed split visible at once.
func (s *Store) publishSplit(left *replica, made []half, leads bool, ownLocked func()) {
	born := make([]*replica, 0, len(made))
	overs := make([]*replica, 0, len(made))
	for i := range made {
		r, err := s.newReplica(made[i].state)
		if err != nil {
			s.log.Error("a replica of a split cannot be opened; a restart tries again",
				"shard", made[i].desc.Shard, "error", err)
			continue
		}
		r.in.campaign = leads
		r.worker.over = made[i].over
		r.inheritLoad(left, made[i].share)
		born, overs = append(born, r), append(overs, made[i].over)
	}
	inboxes := make([][]wire.RaftMessage, len(born))
	s.mu.Lock()
	ownLocked()
	stopped := s.mu.stopped
	if !stopped {
		for i, r := range born {
			inboxes[i] = s.takeInboxLocked(overs[i])
			s.publishLocked(r, overs[i], "the shard was split off")
		}
	}
	s.mu.Unlock()
	if stopped {
		return // durable, but nobody runs them in this life
	}
	for i, r := range born {
		s.metrics.created.Inc()
		s.pool.EnqueueMany([]uint64{s.workerOf(r.shard).control, uint64(r.shard)})
		s.Step(inboxes[i])
		s.stepEarly(r.shard)
	}
}

// shareOf returns a part of the statistics, in millionths, rounded down.
func shareOf(s engine.Stats, millionths uint32) engine.Stats {
	part := func(v uint64) uint64 {
		hi, lo := bits.Mul64(v, uint64(millionths))
		q, _ := bits.Div64(hi, lo, wire.SplitShares) // millionths is at most the divisor: it cannot overflow
		return q
	}
	return engine.Stats{PutBytes: part(s.PutBytes), PutOps: part(s.PutOps), DeleteOps: part(s.DeleteOps)}
}

func minus(a, b engine.Stats) engine.Stats {
	return engine.Stats{PutBytes: a.PutBytes - b.PutBytes, PutOps: a.PutOps - b.PutOps, DeleteOps: a.DeleteOps - b.DeleteOps}
}
