package node

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// Splits at the shard's leader. The ids of the new shards come with the request, so that a repeated one finds what the
// first has done. Once a split is applied here the meta leader hears of it at once, not with the next regular report.

// SplitShard implements InternalService.
func (s *internalService) SplitShard(ctx context.Context, req *pb.SplitShardRequest) (*pb.SplitShardResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	descs, err := m.splitHere(ctx, req)
	var not *notLead
	switch {
	case errors.As(err, &not):
		return &pb.SplitShardResponse{NotLeader: true, Leader: uint64(not.leader)}, nil
	case err != nil:
		return nil, err
	}
	resp := &pb.SplitShardResponse{}
	for _, d := range descs {
		resp.Descriptors = append(resp.Descriptors, d.Append(nil))
	}
	return resp, nil
}

// splitHere splits a shard that this store leads and returns the descriptors of its parts, the left one first; *notLead
// if it does not lead. Other errors are gRPC statuses: FailedPrecondition is a refusal that will not change by itself,
// Aborted one that may; Unknown leaves open whether the shard was split: look at it, then decide.
func (m *member) splitHere(ctx context.Context, req *pb.SplitShardRequest) ([]*base.Descriptor, error) {
	id := base.ShardID(req.ShardId)
	if done := m.splitBefore(req); done != nil {
		return done, nil
	}
	sides, err := m.splitSides(ctx, req)
	if err != nil {
		return nil, err
	}
	epoch := base.Epoch{ConfVer: req.ConfVer, Version: req.Version}
	left, rights, err := m.store.Split(ctx, id, epoch, sides)
	if err != nil {
		return nil, boundaryStatus(err)
	}
	return append([]*base.Descriptor{left}, rights...), nil
}

// splitBefore returns the parts of a split that the leader chose the keys of and that has happened, nil if it has not.
func (m *member) splitBefore(req *pb.SplitShardRequest) (out []*base.Descriptor) {
	if len(req.Keys) > 0 {
		return nil // Split itself finds out
	}
	left, ok := m.store.Descriptor(base.ShardID(req.ShardId))
	if !ok {
		return nil
	}
	for _, id := range req.NewShardIds {
		if d, ok := m.store.Descriptor(base.ShardID(id)); ok {
			out = append(out, d)
		}
	}
	if out == nil {
		return nil
	}
	return append([]*base.Descriptor{left}, out...)
}

// splitSides turns a request into keys: those that it gives, or those that the leader chooses.
func (m *member) splitSides(ctx context.Context, req *pb.SplitShardRequest) ([]shard.SplitSide, error) {
	keys := req.Keys
	var shares []uint32
	if len(keys) == 0 {
		chosen, err := m.chooseSplitKeys(ctx, req)
		if err != nil {
			return nil, err
		}
		keys, shares = chosen.keys, chosen.shares
	}
	if len(keys) > len(req.NewShardIds) {
		return nil, status.Errorf(codes.InvalidArgument, "split s%d: %d keys, but ids for %d new shards",
			req.ShardId, len(keys), len(req.NewShardIds))
	}
	sides := make([]shard.SplitSide, len(keys))
	for i, key := range keys {
		// Of what lies between keys that are given, nothing better is known than that equal parts were wanted.
		share := uint32(wire.SplitShares / (len(keys) + 1))
		if shares != nil {
			share = shares[i+1]
		}
		sides[i] = shard.SplitSide{ID: base.ShardID(req.NewShardIds[i]), Start: key, Share: share}
	}
	return sides, nil
}

// boundaryStatus maps errors of boundary commands.
func boundaryStatus(err error) error {
	var refused *shard.BoundaryError
	switch {
	case errors.As(err, &refused) && refused.Retry:
		return status.Error(codes.Aborted, err.Error())
	case errors.As(err, &refused):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, shard.ErrAmbiguousBoundary):
		return status.Error(codes.Unknown, err.Error())
	}
	return leadStatus(err)
}

// onSplit is shard.Config.OnSplit: the descriptor index follows within milliseconds. Every member of the shard reports:
// the leader may be the one whose report is lost.
func (m *member) onSplit(_ *base.Descriptor, _ []*base.Descriptor, _ bool) { m.reports.wakeUp() }
