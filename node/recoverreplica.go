package node

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/recovery"
	"github.com/shardd/shardd/shard"
)

// One step of a recovery on this node. It is done only for the recovery that is on record here, so that of two
// coordinators at most one gets anything done; each step is synced before it is answered, and repeating it changes nothing.

// Actions of RecoverReplica; none: the replica becomes the only voter.
const (
	recoverDrop   = "drop"
	recoverCreate = "create"
	recoverSettle = "settle"
)

// RecoverReplica implements InternalService.
func (s *internalService) RecoverReplica(ctx context.Context, req *pb.RecoverReplicaRequest) (
	*pb.RecoverReplicaResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	if err := m.recoverHere(ctx, req); err != nil {
		return nil, err
	}
	return &pb.RecoverReplicaResponse{Descriptor_: req.Descriptor_}, nil
}

func (m *member) recoverHere(ctx context.Context, req *pb.RecoverReplicaRequest) error {
	m.recoverer.here.Lock()
	defer m.recoverer.here.Unlock()
	id, _ := m.n.eng.Ident()
	if r := id.Recovery; r == nil || r.ID != req.RecoveryId || r.Stage.Ended() {
		return status.Errorf(codes.Aborted, "recovery %d is not under way on %s", req.RecoveryId, m.self)
	}
	var d *base.Descriptor
	if len(req.Descriptor_) > 0 {
		var err error
		if d, _, err = base.DecodeDescriptor(req.Descriptor_); err != nil || d.Shard != base.ShardID(req.ShardId) {
			return status.Errorf(codes.InvalidArgument, "recover s%d: descriptor %v: %v", req.ShardId, d, err)
		}
	}
	err := m.recoverOne(ctx, req, d)
	if err == nil && d != nil && d.Shard == base.MetaShard {
		m.learnMeta(d)
	}
	if perr := m.n.point("shard recovered"); perr != nil {
		return perr
	}
	return recoverStatus(err)
}

func (m *member) recoverOne(ctx context.Context, req *pb.RecoverReplicaRequest, d *base.Descriptor) error {
	sh, replica := base.ShardID(req.ShardId), base.ReplicaID(req.ReplicaId)
	switch {
	case req.Action == recoverDrop && d == nil:
		return m.store.GiveUp(ctx, sh, replica)
	case req.Action == recoverDrop:
		return m.store.RemoveReplica(ctx, sh, replica, d)
	case req.Action == recoverCreate && d != nil:
		var data []engine.KV
		for _, kv := range req.MetaData {
			data = append(data, engine.KV{Key: kv.Key, Value: kv.Value})
		}
		return m.store.Create(d, data, true)
	case req.Action == recoverSettle:
		return m.store.Settle(ctx, sh, replica)
	case req.Action == "" && d != nil:
		return m.store.Recover(ctx, replica, d, req.Version, req.Term)
	}
	return fmt.Errorf("recover %s: unknown action %q, or no descriptor", sh, req.Action)
}

// recoverStatus maps the outcome of a step: FailedPrecondition is one that has to be planned anew.
func recoverStatus(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return status.FromContextError(err).Err()
	case errors.Is(err, shard.ErrStopping):
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(codes.FailedPrecondition, err.Error())
}

// askRecover has a node take a step.
func (m *member) askRecover(ctx context.Context, at base.StoreID, req *pb.RecoverReplicaRequest) error {
	req.ClusterId = m.cluster[:]
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	if at == m.self {
		return m.recoverHere(ctx, req)
	}
	c, err := m.internal(at)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	_, err = c.RecoverReplica(ctx, req)
	return err
}

// dropRequest gives a replica up: on proof if its shard goes on, else for good.
func dropRequest(recoveryID uint64, d recovery.Drop, proof *base.Descriptor) *pb.RecoverReplicaRequest {
	req := &pb.RecoverReplicaRequest{
		ShardId: uint64(d.Shard), ReplicaId: uint64(d.Replica), RecoveryId: recoveryID, Action: recoverDrop,
	}
	if proof != nil {
		req.Descriptor_ = proof.Append(nil)
	}
	return req
}
