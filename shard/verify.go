package shard

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Verification of a shard. Propose: the leader puts an entry into the log that changes nothing. Apply: every replica
// comes to it at the same state, by itself in a run of its own. Publish: a view of exactly that state is opened and
// handed to Config.OnVerify, whose owner reads and compares it at its leisure. A crash after Apply may lose the view,
// and one before it opens the view at the next start: whoever compares must bear with a missing and with a late one.

// VerifyRun asks for the checksum of one replica at one index. The receiver closes View; with Err there is none.
type VerifyRun struct {
	Shard          base.ShardID
	Replica        base.ReplicaID
	ID             uint64 // of the verification, the same on all replicas
	Index          uint64 // of its entry: View holds exactly what is applied up to there
	View           *engine.View
	BytesPerSecond uint64 // 0: as the receiver likes
	Err            error  // why there is no view
}

// Verify proposes a verification of a shard that this store leads and returns, once that is committed, its id and the
// index at which every replica opens its view. bytesPerSecond travels with it. Errors: *NotFoundError, *NotLeaderError,
// *FaultedError, *ChangeError (refused), ErrStopping, or one that wraps ErrAmbiguousChange if it may still happen.
func (s *Store) Verify(ctx context.Context, shard base.ShardID, bytesPerSecond uint64) (id, index uint64, err error) {
	r, err := s.find(shard)
	if err != nil {
		return 0, 0, err
	}
	type result struct {
		id, index uint64
		err       error
	}
	ch := make(chan result, 1)
	ask := func(r *replica) {
		s.workerOf(shard).proposeVerify(r, bytesPerSecond, func(id, index uint64, err error) { ch <- result{id, index, err} })
	}
	if !s.call(r, ask) {
		return 0, 0, ErrStopping
	}
	select {
	case res := <-ch:
		return res.id, res.index, res.err
	case <-ctx.Done():
		return 0, 0, fmt.Errorf("verify %s: %w: %w", shard, ErrAmbiguousChange, ctx.Err())
	}
}

// proposeVerify proposes on the worker.
func (w *worker) proposeVerify(r *replica, rate uint64, done func(id, index uint64, err error)) {
	rw := &r.worker
	if rw.disposed || rw.rn == nil {
		done(0, 0, r.endError())
		return
	}
	st := rw.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || rw.nonvoter {
		done(0, 0, r.notLeaderError(st.Lead))
		return
	}
	id := w.store.proposals.Add(1)
	h := wire.EntryHeader{Kind: wire.EntryVerify, Proposal: id}
	v := wire.Verify{ID: uint64(w.store.cfg.Store)<<48 ^ w.store.cfg.Incarnation<<32 ^ id, BytesPerSecond: rate}
	data := v.Append(h.Append(make([]byte, 0, wire.EntryHeaderSize+wire.VerifySize)))
	if err := rw.rn.Propose(data); err != nil {
		done(0, 0, &ChangeError{Shard: r.shard, Reason: "raft takes no proposals: " + err.Error(), Retry: true})
		return
	}
	r.track(&tracked{id: id, done: func(_ *base.Descriptor, index uint64, err error) { done(v.ID, index, err) }})
}

// openVerify hands a view of the state just published to the receiver.
func (s *Store) openVerify(r *replica, e *raftpb.Entry) {
	if s.cfg.OnVerify == nil {
		return
	}
	run := VerifyRun{Shard: r.shard, Replica: r.id, Index: e.Index}
	_, body, err := wire.DecodeEntry(e.Data)
	if err == nil {
		var v wire.Verify
		v, err = wire.DecodeVerify(body)
		run.ID, run.BytesPerSecond = v.ID, v.BytesPerSecond
	}
	if err == nil {
		run.View, err = s.engine.OpenView(r.shard)
	}
	if err == nil && run.View.Applied().Index != e.Index {
		err = fmt.Errorf("the view is of index %d", run.View.Applied().Index)
		_ = run.View.Close()
		run.View = nil
	}
	if err != nil {
		run.Err = fmt.Errorf("view of %s at %d for a verification: %w", r, e.Index, err)
	}
	s.cfg.OnVerify(run)
}
