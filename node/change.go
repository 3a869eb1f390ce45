package node

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/shard"
)

// Membership changes and transfers from any node, and what is to be known before one: each goes to the shard's leader.

// opNames are the names of changes in InternalService.
func opNames() map[shard.ReplicaOp]string {
	return map[shard.ReplicaOp]string{
		shard.AddLearner: "add-learner", shard.Promote: "promote", shard.Demote: "demote", shard.Remove: "remove",
	}
}

// changeReplicas changes the members of a shard at its leader, wherever that is, and returns the descriptor that the
// leader has applied; a joint change may still be on its way out of Joint. confVer is the ConfVer that the caller has
// seen, 0 for any. Errors are gRPC statuses: FailedPrecondition is a refusal that will not change by itself, Aborted one
// that may; Unknown leaves open whether the change was made, and so does Unavailable, which says that no leader could be
// asked before ctx ended: look at the shard, then decide.
func (m *member) changeReplicas(ctx context.Context, id base.ShardID, confVer uint64, changes []shard.ReplicaChange) (
	out *base.Descriptor, err error) {
	err = m.atLeader(ctx, id, func(at base.StoreID) (err error) {
		out, err = m.askChange(ctx, at, id, confVer, changes)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (m *member) askChange(ctx context.Context, at base.StoreID, id base.ShardID, confVer uint64,
	changes []shard.ReplicaChange) (*base.Descriptor, error) {
	if at == m.self {
		return m.changeHere(ctx, id, confVer, changes)
	}
	c, err := m.internal(at)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	req := &pb.ChangeReplicasRequest{ClusterId: m.cluster[:], ShardId: uint64(id), ConfVer: confVer}
	names := opNames()
	for _, c := range changes {
		req.Changes = append(req.Changes, &pb.ReplicaChange{
			Op: names[c.Op], NodeId: uint64(c.Store), ReplicaId: uint64(c.Replica),
		})
	}
	resp, err := c.ChangeReplicas(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case resp.NotLeader:
		return nil, &notLead{base.StoreID(resp.Leader)}
	}
	d, _, err := base.DecodeDescriptor(resp.Descriptor_)
	if err != nil {
		return nil, status.Errorf(codes.DataLoss, "change of %s at %s: %v", id, at, err)
	}
	return d, nil
}

// changeHere changes the members of a shard that this store leads; *notLead if it does not.
func (m *member) changeHere(ctx context.Context, id base.ShardID, confVer uint64, changes []shard.ReplicaChange) (
	*base.Descriptor, error) {
	d, err := m.store.ChangeReplicas(ctx, id, confVer, changes)
	if err == nil {
		return d, nil
	}
	var refused *shard.ChangeError
	switch {
	case errors.As(err, &refused) && refused.Retry:
		return nil, status.Error(codes.Aborted, err.Error())
	case errors.As(err, &refused):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, shard.ErrAmbiguousChange):
		return nil, status.Error(codes.Unknown, err.Error())
	}
	return nil, leadStatus(err)
}

// leadStatus maps errors of calls that only a leader can answer.
func leadStatus(err error) error {
	var not *shard.NotLeaderError
	var absent *shard.NotFoundError
	var faulted *shard.FaultedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &not):
		return &notLead{not.Leader}
	case errors.As(err, &absent), errors.As(err, &faulted):
		return &notLead{}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return status.FromContextError(err).Err()
	case errors.Is(err, shard.ErrStopping):
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(codes.FailedPrecondition, err.Error())
}

// ChangeReplicas implements InternalService.
func (s *internalService) ChangeReplicas(ctx context.Context, req *pb.ChangeReplicasRequest) (
	*pb.ChangeReplicasResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	ops := make(map[string]shard.ReplicaOp)
	for op, name := range opNames() {
		ops[name] = op
	}
	var changes []shard.ReplicaChange
	for _, c := range req.Changes {
		op, ok := ops[c.Op]
		if !ok {
			return nil, status.Errorf(codes.InvalidArgument, "change of s%d: unknown operation %q", req.ShardId, c.Op)
		}
		changes = append(changes, shard.ReplicaChange{
			Op: op, Store: base.StoreID(c.NodeId), Replica: base.ReplicaID(c.ReplicaId),
		})
	}
	d, err := m.changeHere(ctx, base.ShardID(req.ShardId), req.ConfVer, changes)
	var not *notLead
	switch {
	case errors.As(err, &not):
		return &pb.ChangeReplicasResponse{NotLeader: true, Leader: uint64(not.leader)}, nil
	case err != nil:
		return nil, err
	}
	return &pb.ChangeReplicasResponse{Descriptor_: d.Append(nil)}, nil
}

// moveLeader hands the leadership of a shard to a store and waits until it leads: at which term, and who led before.
// Errors are gRPC statuses, as for changeReplicas.
func (m *member) moveLeader(ctx context.Context, id base.ShardID, to base.StoreID) (
	from base.StoreID, term uint64, err error) {
	err = m.atLeader(ctx, id, func(at base.StoreID) error {
		t, leader, err := m.askTransfer(ctx, at, id, to)
		switch {
		case err != nil:
			return err
		case t == 0:
			return &notLead{leader}
		}
		from, term = at, t
		return nil
	})
	return from, term, err
}

// shardNow asks the leader of a shard for its applied descriptor and the progress of its members, and the members for
// what only they know. Unavailable: no leader could be asked.
func (m *member) shardNow(ctx context.Context, id base.ShardID) (*placement.ShardNow, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	var lead *pb.ReplicaResponse
	var at base.StoreID
	err := m.atLeader(ctx, id, func(a base.StoreID) (err error) {
		at = a
		lead, err = m.askReplica(ctx, a, id)
		switch {
		case status.Code(err) == codes.NotFound:
			return &notLead{}
		case err != nil:
			return err
		case lead.Status.RaftState != raftLeader:
			return &notLead{base.StoreID(lead.Status.Lead)}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	d, _, err := base.DecodeDescriptor(lead.Descriptor_)
	if err != nil {
		return nil, status.Errorf(codes.DataLoss, "descriptor of %s at %s: %v", id, at, err)
	}
	out := &placement.ShardNow{Desc: d, Leader: at, Term: lead.Status.Term}
	ask, stop := context.WithTimeout(ctx, forwardTimeout)
	answers := m.askReplicas(ask, d)
	stop()
	waits := false
	for i, r := range d.Replicas {
		now := placement.ReplicaNow{Replica: r.Replica, Store: r.Store, Role: r.Role, Last: lead.Status.LastIndex}
		for _, p := range lead.Status.Progress {
			if p.ReplicaId == uint64(r.Replica) {
				now.Match, now.Active, now.PendingSnapshot = p.Match, p.RecentActive, p.PendingSnapshot
			}
		}
		if st := answers[i].status; st.ReplicaId == uint64(r.Replica) {
			now.Applied, now.Bytes = st.Applied, st.DataBytes
		}
		waits = waits || now.PendingSnapshot > 0
		out.Progress = append(out.Progress, now)
	}
	if waits {
		out.Snapshot = m.snapshotOf(ctx, at, id)
	}
	return out, nil
}
