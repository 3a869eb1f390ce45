package node

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/shard/apply"
)

// The steps of a merge at the leaders of the two shards, and the question of a frozen one's leader what became of it.
// mergerun.go puts them together.

// FreezeShard implements InternalService.
func (s *internalService) FreezeShard(ctx context.Context, req *pb.FreezeShardRequest) (*pb.FreezeShardResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	index, d, err := m.store.Freeze(ctx, base.ShardID(req.ShardId), wire.Freeze{
		ID: req.MergeId, Into: base.ShardID(req.IntoShardId),
		IntoEpoch: base.Epoch{ConfVer: req.IntoConfVer, Version: req.IntoVersion},
		Epoch:     base.Epoch{ConfVer: req.ConfVer, Version: req.Version},
	})
	lead, err := asksLeader(err)
	switch {
	case err != nil:
		return nil, err
	case lead != nil:
		return &pb.FreezeShardResponse{NotLeader: true, Leader: uint64(lead.leader)}, nil
	}
	return &pb.FreezeShardResponse{Index: index, Descriptor_: d.Append(nil)}, nil
}

// asksLeader tells a node that does not lead from other outcomes of a boundary command.
func asksLeader(err error) (*notLead, error) {
	if err == nil {
		return nil, nil
	}
	var not *notLead
	if err = boundaryStatus(err); errors.As(err, &not) {
		return not, nil
	}
	return nil, err
}

// maxFreezeWait bounds how long FreezeState waits.
const maxFreezeWait = 10 * time.Second

// FreezeState implements InternalService.
func (s *internalService) FreezeState(ctx context.Context, req *pb.FreezeStateRequest) (*pb.FreezeStateResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	wait := min(time.Duration(min(req.WaitMs, uint64(maxFreezeWait/time.Millisecond)))*time.Millisecond, maxFreezeWait)
	st, err := m.store.AwaitFreeze(ctx, base.ShardID(req.ShardId), req.MergeId, req.Index, wait)
	var absent *shard.NotFoundError
	switch {
	case errors.As(err, &absent):
		return nil, status.Error(codes.NotFound, err.Error())
	case err != nil:
		return nil, boundaryStatus(err)
	}
	return &pb.FreezeStateResponse{
		Frozen: st.Confirms(req.MergeId, req.Index), Applied: st.Applied, ReplicaId: uint64(st.Replica),
	}, nil
}

// CommitMerge implements InternalService.
func (s *internalService) CommitMerge(ctx context.Context, req *pb.CommitMergeRequest) (*pb.CommitMergeResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	right, rest, err := base.DecodeDescriptor(req.RightDescriptor)
	if err != nil || len(rest) > 0 {
		return nil, status.Errorf(codes.InvalidArgument, "merge into s%d: the right shard's descriptor: %v", req.ShardId, err)
	}
	d, err := m.store.CommitMerge(ctx, base.ShardID(req.ShardId), &wire.CommitMerge{
		ID: req.MergeId, Epoch: base.Epoch{ConfVer: req.ConfVer, Version: req.Version},
		Frozen: req.FreezeIndex, Right: right,
	})
	lead, err := asksLeader(err)
	switch {
	case err != nil:
		return nil, err
	case lead != nil:
		return &pb.CommitMergeResponse{NotLeader: true, Leader: uint64(lead.leader)}, nil
	}
	return &pb.CommitMergeResponse{Descriptor_: d.Append(nil)}, nil
}

// AbortMerge implements InternalService.
func (s *internalService) AbortMerge(ctx context.Context, req *pb.AbortMergeRequest) (*pb.AbortMergeResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	out, err := m.store.AbortMerge(ctx, base.ShardID(req.ShardId), wire.AbortMerge{
		ID: req.MergeId, Right: base.ShardID(req.RightShardId), Epoch: base.Epoch{ConfVer: req.ConfVer, Version: req.Version},
	})
	lead, err := asksLeader(err)
	switch {
	case err != nil:
		return nil, err
	case lead != nil:
		return &pb.AbortMergeResponse{NotLeader: true, Leader: uint64(lead.leader)}, nil
	}
	return &pb.AbortMergeResponse{Decision: out.String()}, nil
}

// MergeDecision implements InternalService. What is decided may be believed from anybody; what is not, from the leader
// alone, and he may say otherwise the next moment.
func (s *internalService) MergeDecision(ctx context.Context, req *pb.MergeDecisionRequest) (
	*pb.MergeDecisionResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	left := base.ShardID(req.ShardId)
	out, err := m.store.MergeDecision(left, req.MergeId, base.Epoch{ConfVer: req.ConfVer, Version: req.Version})
	if err != nil {
		return &pb.MergeDecisionResponse{NotLeader: true}, nil
	}
	if lead, _, _ := m.store.Leader(left); !out.Final() && lead != m.self {
		return &pb.MergeDecisionResponse{NotLeader: true, Leader: uint64(lead)}, nil
	}
	return &pb.MergeDecisionResponse{Decision: out.String()}, nil
}

// outcomes are the words of InternalService.
func outcomeOf(word string) shard.MergeOutcome {
	for _, o := range []shard.MergeOutcome{apply.MergePending, apply.MergeCommitted, apply.MergeAborted} {
		if o.String() == word {
			return o
		}
	}
	return apply.MergeUnknown
}

// mergeDecision asks the leader of the left shard what became of a merge. Errors are gRPC statuses.
func (m *member) mergeDecision(ctx context.Context, q shard.MergeQuestion) (out shard.MergeOutcome, err error) {
	req := &pb.MergeDecisionRequest{
		ClusterId: m.cluster[:], ShardId: uint64(q.Left), MergeId: q.ID, ConfVer: q.Epoch.ConfVer, Version: q.Epoch.Version,
		RightShardId: uint64(q.Right),
	}
	err = m.atLeader(ctx, q.Left, func(at base.StoreID) error {
		c, err := m.internalOf(at)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		resp, err := c.MergeDecision(ctx, req)
		switch {
		case err != nil:
			return err
		case resp.NotLeader:
			return &notLead{base.StoreID(resp.Leader)}
		}
		out = outcomeOf(resp.Decision)
		return nil
	})
	return out, err
}

// abortMerge has the left shard's log decide against a merge, and says what it has decided. Errors are gRPC statuses.
func (m *member) abortMerge(ctx context.Context, q shard.MergeQuestion) (out shard.MergeOutcome, err error) {
	req := &pb.AbortMergeRequest{
		ClusterId: m.cluster[:], ShardId: uint64(q.Left), MergeId: q.ID, ConfVer: q.Epoch.ConfVer, Version: q.Epoch.Version,
		RightShardId: uint64(q.Right),
	}
	err = m.atLeader(ctx, q.Left, func(at base.StoreID) error {
		c, err := m.internalOf(at)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		resp, err := c.AbortMerge(ctx, req)
		switch {
		case err != nil:
			return err
		case resp.NotLeader:
			return &notLead{base.StoreID(resp.Leader)}
		}
		out = outcomeOf(resp.Decision)
		return nil
	})
	return out, err
}

// mergeAsker is shard.Config.Merges.
type mergeAsker struct{ m *member }

// AskMerge implements shard.MergeAsker. Each frozen shard that this store leads has one question under way at most.
func (a mergeAsker) AskMerge(q shard.MergeQuestion, abort bool, done func(shard.MergeOutcome)) {
	m := a.m
	m.asks.Add(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
		defer cancel()
		ask := m.mergeDecision
		if abort {
			ask = m.abortMerge
		}
		out, err := ask(ctx, q)
		if err != nil {
			m.log.Debug("ask what became of a merge", "merge", q.ID, "left", q.Left, "right", q.Right, "err", err)
			out = apply.MergeUnknown
		}
		done(out)
	})
}

// onMerge is shard.Config.OnMerge: the descriptor index follows within milliseconds.
func (m *member) onMerge(*base.Descriptor, base.ShardID) { m.reports.wakeUp() }
