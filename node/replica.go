package node

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// progressTimeout bounds the question to a shard's worker how far the followers are.
const progressTimeout = time.Second

// replicaStatus describes one local replica.
func (m *member) replicaStatus(ctx context.Context, id base.ShardID) (*pb.ReplicaStatus, error) {
	st, ok := m.store.Status(id)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "%s has no replica of %s", m.self, id)
	}
	out := &pb.ReplicaStatus{
		NodeId: uint64(m.self), ReplicaId: uint64(st.Replica), RaftState: raftState(st.Leads, st.Leader), Term: st.Term,
		Lead: uint64(st.Leader), Commit: st.Commit, Applied: st.Applied, FirstIndex: st.FirstIndex,
		LastIndex: st.LastIndex, LogBytes: st.LogBytes, Faulted: st.Faulted, PutBytes: st.Stats.PutBytes,
	}
	if st.Desc != nil {
		out.ConfVer, out.Version = st.Desc.Epoch.ConfVer, st.Desc.Epoch.Version
		if r, ok := st.Desc.ReplicaOn(m.self); ok {
			out.Role = r.Role.String()
		}
	}
	if !st.Leads || st.Faulted != "" {
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	// Progress is a courtesy: a replica that lost leadership meanwhile has none.
	if ps, err := m.store.Progress(ctx, id); err == nil {
		for _, p := range ps {
			out.Progress = append(out.Progress, &pb.FollowerProgress{
				ReplicaId: uint64(p.Replica), Match: p.Match, Next: p.Next, State: p.State, RecentActive: p.Active,
			})
		}
	}
	return out, nil
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
