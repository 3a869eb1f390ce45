package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/shard/apply"
)

// One attempt at a merge of the shard right into its left neighbour. Look: both shards as their leaders have them, on
// the same stores. Freeze: from here on clients of the right shard wait. Confirm: every replica of it says that it is
// frozen, synced; all are asked at once, and each answers the moment it is. Commit, or abort: the left shard's log
// decides. Whoever runs this may die between any two steps: the leader of the frozen shard finds out what the log has
// decided, or has it decide, and the same attempt is never made twice, since each has an id of its own.

// Phases of an attempt, as mergeShards reports them before they begin.
const (
	mergeLook    = "look"
	mergeFreeze  = "freeze"
	mergeConfirm = "confirm"
	mergeCommit  = "commit"
	mergeAbort   = "abort"
)

// mergeTicks is for how many ticks a merge may stay undecided before the leader of the frozen shard has it aborted, and
// confirmTicks for how many this node waits for the replicas to confirm before it does; clients wait meanwhile.
const (
	mergeTicks   = 100
	confirmTicks = 20
)

func (m *member) confirmTimeout() time.Duration { return confirmTicks * m.n.cfg.Settings.Tick }

// errMergeAborted says that a merge did not come about, and never will under its id: nothing has changed but epochs.
type errMergeAborted struct {
	id  uint64
	why error
}

func (e *errMergeAborted) Error() string { return fmt.Sprintf("merge %d was aborted: %v", e.id, e.why) }
func (e *errMergeAborted) Unwrap() error { return e.why }

// GRPCStatus implements the interface of package status: another attempt may pass.
func (e *errMergeAborted) GRPCStatus() *status.Status { return status.New(codes.Aborted, e.Error()) }

// newMergeID returns an id that no other merge has.
func (m *member) newMergeID() uint64 {
	return uint64(m.self)<<48 ^ m.incarnation<<32 ^ m.merges.Add(1)
}

// mergeShards makes one attempt to merge a shard into its left neighbour, under an id that has not been used before, and
// returns the descriptor after it. note is told of each phase; it may be nil. Errors are gRPC statuses: Aborted and
// FailedPrecondition say that it was not merged and will not be under this id; the latter that the two cannot be merged
// as they are. Anything else leaves it open for the moment: mergeDecision tells later, and the shards themselves.
func (m *member) mergeShards(
	ctx context.Context, left, right base.ShardID, id uint64, note func(phase string),
) (*base.Descriptor, error) {
	if note == nil {
		note = func(string) {}
	}
	note(mergeLook)
	l, r, err := m.mergePair(ctx, left, right)
	if err != nil {
		return nil, err
	}
	a := &mergeAttempt{m: m, note: note, q: shard.MergeQuestion{ID: id, Left: left, Epoch: l.Epoch, Right: right}}
	d, err := a.run(ctx, l, r)
	if err != nil {
		return nil, err
	}
	m.learnDescriptors([][]byte{d.Append(nil)})
	return d, nil
}

// mergePair returns the descriptors of both shards, of which their leaders know, if they can be merged as they are.
func (m *member) mergePair(ctx context.Context, left, right base.ShardID) (l, r *base.Descriptor, err error) {
	ask := func(id base.ShardID) (*base.Descriptor, error) {
		now, err := m.shardNow(ctx, id)
		if err != nil {
			return nil, err
		}
		return now.Desc, nil
	}
	if l, err = ask(left); err == nil {
		r, err = ask(right)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := apply.Mergeable(l, r); err != nil {
		return nil, nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return l, r, nil
}

// mergeAttempt is one attempt from the freeze on.
type mergeAttempt struct {
	m    *member
	q    shard.MergeQuestion
	note func(string)
}

func (a *mergeAttempt) run(ctx context.Context, l, r *base.Descriptor) (*base.Descriptor, error) {
	a.note(mergeFreeze)
	index, frozen, err := a.freeze(ctx, r)
	switch status.Code(err) {
	case codes.OK:
	case codes.Aborted, codes.FailedPrecondition: // definite: it is not frozen
		return nil, status.Error(codes.Aborted, status.Convert(err).Message()) // the shards have changed since the look
	default:
		return nil, a.abort(ctx, fmt.Errorf("freeze %s: %w", a.q.Right, err), nil)
	}
	a.note(mergeConfirm)
	if err := a.confirm(ctx, frozen, index); err != nil {
		return nil, a.abort(ctx, err, nil)
	}
	a.note(mergeCommit)
	d, err := a.commit(ctx, frozen, index)
	if err == nil {
		return d, nil
	}
	// Refused, or not known: the log has the last word, and is made to say it.
	committed := false
	if err := a.abort(ctx, fmt.Errorf("commit into %s: %w", a.q.Left, err), &committed); !committed {
		return nil, err
	}
	now, err := a.m.shardNow(ctx, a.q.Left)
	if err != nil {
		return nil, err
	}
	return now.Desc, nil
}

func (a *mergeAttempt) freeze(ctx context.Context, r *base.Descriptor) (index uint64, d *base.Descriptor, err error) {
	m := a.m
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout) // a shard that has lost its quorum has no leader for long
	defer cancel()
	req := &pb.FreezeShardRequest{
		ClusterId: m.cluster[:], ShardId: uint64(a.q.Right), MergeId: a.q.ID,
		ConfVer: r.Epoch.ConfVer, Version: r.Epoch.Version,
		IntoShardId: uint64(a.q.Left), IntoConfVer: a.q.Epoch.ConfVer, IntoVersion: a.q.Epoch.Version,
	}
	err = m.atLeader(ctx, a.q.Right, func(at base.StoreID) error {
		c, err := m.internalOf(at)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		resp, err := c.FreezeShard(ctx, req)
		switch {
		case err != nil:
			return err
		case resp.NotLeader:
			return &notLead{base.StoreID(resp.Leader)}
		}
		index = resp.Index
		if d, _, err = base.DecodeDescriptor(resp.Descriptor_); err != nil {
			return status.Errorf(codes.DataLoss, "freeze of %s at %s: %v", a.q.Right, at, err)
		}
		return nil
	})
	return index, d, err
}

// confirm asks every replica of the frozen shard at once, and returns nil if all are frozen.
func (a *mergeAttempt) confirm(ctx context.Context, d *base.Descriptor, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, a.m.confirmTimeout())
	defer cancel()
	errs := make([]error, len(d.Replicas))
	var wg sync.WaitGroup
	for i, rep := range d.Replicas {
		wg.Go(func() {
			if errs[i] = a.confirmAt(ctx, rep, index); errs[i] != nil {
				cancel() // one is enough
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil && status.Code(err) != codes.Canceled {
			return fmt.Errorf("replica %s on %s: %w",
				base.ReplicaName(d.Shard, d.Replicas[i].Replica), d.Replicas[i].Store, err)
		}
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *mergeAttempt) confirmAt(ctx context.Context, rep base.ReplicaDesc, index uint64) error {
	c, err := a.m.internalOf(rep.Store)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	resp, err := c.FreezeState(ctx, &pb.FreezeStateRequest{
		ClusterId: a.m.cluster[:], ShardId: uint64(a.q.Right), MergeId: a.q.ID, Index: index,
		WaitMs: uint64(a.m.confirmTimeout() / time.Millisecond),
	})
	switch {
	case err != nil:
		return err
	case !resp.Frozen || resp.ReplicaId != uint64(rep.Replica):
		return status.Errorf(codes.Aborted, "it does not confirm the freeze at %d: replica %d, applied %d",
			index, resp.ReplicaId, resp.Applied)
	}
	return nil
}

func (a *mergeAttempt) commit(ctx context.Context, right *base.Descriptor, index uint64) (d *base.Descriptor, err error) {
	m := a.m
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	req := &pb.CommitMergeRequest{
		ClusterId: m.cluster[:], ShardId: uint64(a.q.Left), MergeId: a.q.ID,
		ConfVer: a.q.Epoch.ConfVer, Version: a.q.Epoch.Version, RightDescriptor: right.Append(nil), FreezeIndex: index,
	}
	err = m.atLeader(ctx, a.q.Left, func(at base.StoreID) error {
		c, err := m.internalOf(at)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		resp, err := c.CommitMerge(ctx, req)
		switch {
		case err != nil:
			return err
		case resp.NotLeader:
			return &notLead{base.StoreID(resp.Leader)}
		}
		if d, _, err = base.DecodeDescriptor(resp.Descriptor_); err != nil {
			return status.Errorf(codes.DataLoss, "merge at %s: %v", at, err)
		}
		return nil
	})
	return d, err
}

// abort has the left shard's log decide against the merge, even if ctx has ended, and returns why it was not made:
// *errMergeAborted once that is certain. If the merge was committed after all, committed is set and there is no error.
func (a *mergeAttempt) abort(ctx context.Context, why error, committed *bool) error {
	a.note(mergeAbort)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaderTimeout)
	defer cancel()
	out, err := a.m.abortMerge(ctx, a.q)
	switch {
	case err != nil:
		return status.Errorf(codes.Unknown, "merge %d: %v; whether it was aborted is not known: %v", a.q.ID, why, err)
	case out == apply.MergeAborted:
		return &errMergeAborted{a.q.ID, why}
	case out == apply.MergeCommitted && committed != nil:
		*committed = true
		return nil
	}
	return status.Errorf(codes.Unknown, "merge %d: %v; it is %s", a.q.ID, why, out)
}
