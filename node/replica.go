package node

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// progressTimeout bounds the question to a shard's worker how far the followers are.
const progressTimeout = time.Second

// replicaHere describes one local replica. A mark alone is worth an answer: it says that the replica is gone for good.
func (m *member) replicaHere(ctx context.Context, id base.ShardID) (*pb.ReplicaResponse, error) {
	st, ok := m.store.Status(id)
	if !ok {
		mark, marked, err := m.n.eng.Mark(id)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "%v", err)
		}
		if marked && mark.ReplicaID == 0 {
			return &pb.ReplicaResponse{MarkNextReplicaId: uint64(mark.NextReplicaID)}, nil
		}
		return nil, m.noReplica(id)
	}
	out := &pb.ReplicaStatus{
		NodeId: uint64(m.self), ReplicaId: uint64(st.Replica), RaftState: raftState(st.Leads, st.Leader), Term: st.Term,
		Lead: uint64(st.Leader), Commit: st.Commit, Applied: st.Applied, FirstIndex: st.FirstIndex,
		LastIndex: st.LastIndex, LogBytes: st.LogBytes, Faulted: st.Faulted, PutBytes: st.Stats.PutBytes,
		Uninitialised: st.Desc == nil, DataBytes: st.SizeBytes, Lease: st.Lease, Asleep: st.Asleep,
	}
	// The vote is a courtesy, from the disk.
	if kept, ok, err := m.n.eng.ReplicaState(id); err == nil && ok {
		out.Vote = kept.Hard.Vote
	}
	resp := &pb.ReplicaResponse{Status: out}
	if st.Desc != nil {
		resp.Descriptor_ = st.Desc.Append(nil)
		out.ConfVer, out.Version = st.Desc.Epoch.ConfVer, st.Desc.Epoch.Version
		if r, ok := st.Desc.ReplicaOn(m.self); ok {
			out.Role = r.Role.String()
		}
	}
	if !st.Leads || st.Faulted != "" {
		return resp, nil
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	// Progress is a courtesy: a replica that lost leadership meanwhile has none.
	if ps, err := m.store.Progress(ctx, id); err == nil {
		for _, p := range ps {
			out.Progress = append(out.Progress, &pb.FollowerProgress{
				ReplicaId: uint64(p.Replica), Match: p.Match, Next: p.Next, State: p.State, RecentActive: p.Active,
				PendingSnapshot: p.PendingSnapshot,
			})
		}
	}
	return resp, nil
}

func (m *member) noReplica(id base.ShardID) error {
	return status.Errorf(codes.NotFound, "%s has no replica of %s", m.self, id)
}

func raftState(leads bool, leader base.StoreID) string {
	switch {
	case leads:
		return raftLeader
	case leader != 0:
		return "follower"
	}
	return "candidate"
}

const raftLeader = "leader"

// askReplica asks a node for its replica of a shard. NotFound if it has none; its mark, if it has one, is then in the
// answer all the same.
func (m *member) askReplica(ctx context.Context, at base.StoreID, id base.ShardID) (*pb.ReplicaResponse, error) {
	var resp *pb.ReplicaResponse
	var err error
	if at == m.self {
		resp, err = m.replicaHere(ctx, id)
	} else {
		c, cerr := m.internal(at)
		if cerr != nil {
			return nil, status.Error(codes.Unavailable, cerr.Error())
		}
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		resp, err = c.Replica(ctx, &pb.ReplicaRequest{ClusterId: m.cluster[:], ShardId: uint64(id)})
	}
	if err == nil && resp.Status == nil {
		err = status.Errorf(codes.NotFound, "the replica of %s on %s was removed", id, at)
	}
	return resp, err
}

// replicaAnswer is what a member says of its replica: only the status' error if it could not be asked.
type replicaAnswer struct {
	status *pb.ReplicaStatus
	desc   *base.Descriptor // applied; nil if uninitialised or not asked
}

// askReplicas asks all members of a shard at the same time.
func (m *member) askReplicas(ctx context.Context, d *base.Descriptor) []replicaAnswer {
	out := make([]replicaAnswer, len(d.Replicas))
	var wg sync.WaitGroup
	for i, r := range d.Replicas {
		wg.Go(func() {
			resp, err := m.askReplica(ctx, r.Store, d.Shard)
			if err == nil && len(resp.Descriptor_) > 0 {
				out[i].desc, _, err = base.DecodeDescriptor(resp.Descriptor_)
			}
			if err != nil {
				out[i] = replicaAnswer{status: &pb.ReplicaStatus{Error: status.Convert(err).Message()}}
				return
			}
			out[i].status = resp.Status
		})
	}
	wg.Wait()
	return out
}
