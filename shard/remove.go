package shard

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Removal. Decide: a conf change without this replica is applied, or somebody brings proof that one was (I5). Park: the
// replica stands still; in the first case the Ready that carries the change simply stays in flight. Commit: one synced
// batch with the mark and range deletions over everything the shard has here, instead of the applied state of the
// change (I2). Publish: the replica goes out of the maps, its worker answers what waits: ShardNotFound for what never
// was proposed, so that clients look elsewhere, Ambiguous for the rest. Views that are open stay good. A crash before
// Commit finds the replica, and the change in its log or the proof are there again; one after it finds the mark.

// ProofError says why a descriptor does not prove that a replica was removed.
type ProofError struct {
	Shard   base.ShardID
	Replica base.ReplicaID
	Reason  string
}

func (e *ProofError) Error() string {
	return fmt.Sprintf("remove replica %s: %s: ask the shard's leader for its applied descriptor",
		base.ReplicaName(e.Shard, e.Replica), e.Reason)
}

// RemoveReplica removes a replica that has missed its own removal, whatever state it is in. proof is an applied
// descriptor of the shard, from its leader, that does not list the replica and whose NextReplicaID is above it: ids are
// never given out twice, so it was removed (I5). It returns nil once the removal is durable, or if the replica is gone
// already. Errors: *ProofError, *NotFoundError (the store never had it), ErrStopping, the engine's, or ctx's; after
// ctx's it may still happen.
func (s *Store) RemoveReplica(
	ctx context.Context, shard base.ShardID, id base.ReplicaID, proof *base.Descriptor,
) error {
	return waitRemoved(ctx, shard, id, func(done func(error)) (<-chan struct{}, error) {
		return s.removeReplica(shard, id, proof, done)
	})
}

// RemoveMerged removes a replica of a shard that was merged into its left neighbour without this store having come to
// that: another store that had a replica of the shard holds the mark of it (I5). Where the shard it goes into still may
// come to the merge by its own log, it takes this replica with it, and needs it until then: that is refused with a
// *ProofError. Other errors are those of RemoveReplica.
func (s *Store) RemoveMerged(ctx context.Context, shard base.ShardID, id base.ReplicaID) error {
	if r := s.lookup(shard); r != nil && r.id == id {
		if f := r.frozen.Load(); f != nil && s.awaitsMerge(f) {
			return &ProofError{Shard: shard, Replica: id, Reason: fmt.Sprintf(
				"the replica of %s on this store has not come to merge %d yet, and needs it", f.Into, f.ID)}
		}
	}
	return waitRemoved(ctx, shard, id, func(done func(error)) (<-chan struct{}, error) {
		return s.removeMarked(shard, id, mergedAway, "merged away, as another store knows", done)
	})
}

// awaitsMerge reports whether a local replica of L may yet apply the merge that a freeze is for.
func (s *Store) awaitsMerge(f *engine.Freeze) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.awaitsMergeLocked(f)
}

func (s *Store) awaitsMergeLocked(f *engine.Freeze) bool {
	l := s.mu.replicas[f.Into]
	if l == nil {
		return false
	}
	if _, bad := l.faultReason(); bad {
		return false
	}
	d := l.desc.Load()
	return d == nil || !d.Epoch.Newer(f.IntoEpoch)
}

// waitRemoved starts a removal, again if another step of the shard is in the way, and waits for its outcome.
func waitRemoved(
	ctx context.Context, shard base.ShardID, id base.ReplicaID, start func(func(error)) (<-chan struct{}, error),
) error {
	ch := make(chan error, 1)
	for {
		busy, err := start(func(err error) { ch <- err })
		switch {
		case err != nil:
			return err
		case busy == nil:
			busy = ctx.Done()
		}
		select {
		case err := <-ch:
			return err
		case <-busy:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return fmt.Errorf("remove replica %s: %w", base.ReplicaName(shard, id), ctx.Err())
		}
	}
}

// checkProof applies rule I5.
func checkProof(shard base.ShardID, id base.ReplicaID, proof *base.Descriptor) error {
	why := ""
	switch {
	case proof == nil || proof.Shard != shard:
		why = "no descriptor of this shard is given"
	case proof.NextReplicaID <= id:
		why = fmt.Sprintf("%s was made before the replica", proof)
	default:
		if _, listed := proof.Replica(id); !listed {
			return nil
		}
		why = fmt.Sprintf("%s lists it", proof)
	}
	return &ProofError{Shard: shard, Replica: id, Reason: why}
}

// removeReplica starts a removal on proof.
func (s *Store) removeReplica(
	shard base.ShardID, id base.ReplicaID, proof *base.Descriptor, done func(error),
) (busy <-chan struct{}, err error) {
	if err := checkProof(shard, id, proof); err != nil {
		return nil, err
	}
	next := proof.NextReplicaID
	if newer, ok := proof.ReplicaOn(s.cfg.Store); ok {
		next = newer.Replica // it is waiting for this one to go
	}
	return s.removeMarked(shard, id, next, "proved to be no member any more", done)
}

// removeMarked starts a removal after which no replica with an id below next may be created. Whoever calls it has made
// sure that the replica has to go.
func (s *Store) removeMarked(
	shard base.ShardID, id, next base.ReplicaID, reason string, done func(error),
) (busy <-chan struct{}, err error) {
	mark, _, err := s.engine.Mark(shard)
	if err != nil {
		return nil, fmt.Errorf("remove replica %s: %w", base.ReplicaName(shard, id), err)
	}
	op := newBoundary(done, nil, shard)
	s.mu.Lock()
	r, other := s.mu.replicas[shard], s.inTheWayLocked(op)
	switch {
	case s.mu.stopped:
		err = ErrStopping
	case other != nil:
		busy = other.ended
	case r == nil || r.id != id:
		r = nil
		if id >= mark.NextReplicaID && mark.ReplicaID != id {
			err = &NotFoundError{Shard: shard}
		}
	default:
		s.reserveLocked(op)
	}
	s.mu.Unlock()
	if busy != nil || err != nil {
		return busy, err
	}
	if r == nil {
		s.finish(op, nil) // gone already
		return nil, nil
	}
	mark = engine.ReplicaMark{NextReplicaID: max(next, mark.NextReplicaID)}
	s.parkAll(op, []*replica{r}, func(ok bool) {
		s.life.post(func() {
			if !ok {
				s.finish(op, nil) // the conf change has removed it
			} else if s.begin(op) {
				s.commitRemoval(r, mark, reason, func(err error) { s.finish(op, err) })
			}
		})
	})
	return nil, nil
}

// removeApplied removes a replica whose own log has removed it. Its Ready stays in flight for ever, so it stands still
// already; mark is what stays.
func (w *worker) removeApplied(r *replica, mark engine.ReplicaMark) {
	s := w.store
	w.holdStill(r, func() {
		s.life.post(func() {
			s.commitRemoval(r, mark, "removed from the shard", func(err error) {
				if err != nil {
					s.fault(r, err.Error(), nil)
				}
			})
		})
	})
}

// commitRemoval writes the removal of a replica that stands still, and ends it.
func (s *Store) commitRemoval(r *replica, mark engine.ReplicaMark, reason string, done func(error)) {
	r.leaving.Store(true) // before it shows: a read that was confirmed earlier must not find the keys gone
	b := s.engine.NewBatch()
	b.RemoveReplica(engine.Removal{Shard: r.shard, Mark: mark, Desc: r.desc.Load()})
	err := s.commitBoundary(b, func() {
		s.unpublish(r, mark, reason)
		s.metrics.removed.Inc()
		s.log.Info("replica removed", "replica", r.String(), "reason", reason, "next", mark.NextReplicaID)
		done(nil)
	})
	if err != nil {
		r.leaving.Store(false)
		done(fmt.Errorf("remove replica %s: %w", r, err))
	}
}

// unpublish takes a replica that is gone from disk out of the maps and has its worker end it.
func (s *Store) unpublish(r *replica, mark engine.ReplicaMark, reason string) {
	s.mu.Lock()
	if s.mu.replicas[r.shard] == r {
		delete(s.mu.replicas, r.shard)
		s.mu.ranges.remove(r)
		s.peers.changed()
		s.noteGone(r.shard)
	}
	s.buryLocked(r.shard, mark)
	w := s.workerOf(r.shard)
	w.mu.Lock()
	w.mu.left = append(w.mu.left, leaving{
		r: r, code: wire.ShardNotFound, reason: "the replica was removed from this store: " + reason,
		err: &NotFoundError{Shard: r.shard},
	})
	w.mu.Unlock()
	s.mu.Unlock()
	s.pool.Enqueue(w.control)
}

// all returns the replicas, by shard.
func (s *Store) all() []*replica {
	s.mu.RLock()
	out := make([]*replica, 0, len(s.mu.replicas))
	for _, r := range s.mu.replicas {
		out = append(out, r)
	}
	s.mu.RUnlock()
	slices.SortFunc(out, func(a, b *replica) int { return cmp.Compare(a.shard, b.shard) })
	return out
}
