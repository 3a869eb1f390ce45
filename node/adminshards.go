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

const (
	listPage    = 1000
	maxListPage = 10_000
)

// ListShards implements AdminService.
func (s *adminService) ListShards(ctx context.Context, req *pb.ListShardsRequest) (*pb.ListShardsResponse, error) {
	return toMeta(ctx, s.n, req, listShards, pb.AdminServiceClient.ListShards)
}

func listShards(ctx context.Context, m *member, req *pb.ListShardsRequest) (*pb.ListShardsResponse, error) {
	limit := int(req.Limit)
	if limit == 0 {
		limit = listPage
	}
	page, next, err := m.dir.ListShards(ctx, req.After, min(limit, maxListPage))
	if err != nil {
		return nil, directoryStatus(err)
	}
	resp := &pb.ListShardsResponse{Next: next}
	for _, info := range m.shardInfos(page) {
		resp.Shards = append(resp.Shards, info.proto())
	}
	return resp, nil
}

func (i *shardInfo) proto() *pb.ShardInfo {
	out := &pb.ShardInfo{
		ShardId: uint64(i.desc.Shard), Start: i.desc.Start, End: i.desc.End, ConfVer: i.desc.Epoch.ConfVer,
		Version: i.desc.Epoch.Version, NextReplicaId: uint64(i.desc.NextReplicaID), Leader: uint64(i.leader),
		Term: i.term, PutBytes: i.putBytes, Creating: i.creating,
	}
	for _, r := range i.desc.Replicas {
		out.Replicas = append(out.Replicas, &pb.ReplicaInfo{
			ReplicaId: uint64(r.Replica), NodeId: uint64(r.Store), Role: r.Role.String(),
		})
	}
	return out
}

// shard finds a shard by its id: in the local store, else in the pages of the index, which is a walk.
func (s *adminService) shard(ctx context.Context, m *member, id base.ShardID) (*pb.ShardInfo, error) {
	if d, ok := m.store.Descriptor(id); ok {
		info := shardInfo{desc: d}
		if lead, term, ok := m.store.Leader(id); ok {
			info.leader, info.term = lead, term
		}
		if st, ok := m.store.Status(id); ok {
			info.putBytes = st.Stats.PutBytes
		}
		return info.proto(), nil
	}
	for after := []byte(nil); ; {
		page, err := s.ListShards(ctx, &pb.ListShardsRequest{After: after, Limit: maxListPage})
		if err != nil {
			return nil, err
		}
		for _, info := range page.Shards {
			if info.ShardId == uint64(id) {
				return info, nil
			}
		}
		if after = page.Next; len(after) == 0 {
			return nil, status.Errorf(codes.NotFound, "no shard %s", id)
		}
	}
}

// DescribeShard implements AdminService.
func (s *adminService) DescribeShard(ctx context.Context, req *pb.DescribeShardRequest) (
	*pb.DescribeShardResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	info, err := s.shard(ctx, m, base.ShardID(req.ShardId))
	if err != nil {
		return nil, err
	}
	resp := &pb.DescribeShardResponse{Shard: info, Replicas: make([]*pb.ReplicaStatus, len(info.Replicas))}
	var wg sync.WaitGroup
	for i, r := range info.Replicas {
		wg.Go(func() {
			st, err := m.askReplica(ctx, base.StoreID(r.NodeId), base.ShardID(req.ShardId))
			if err != nil {
				st = &pb.ReplicaStatus{Error: status.Convert(err).Message(), ReplicaId: r.ReplicaId}
			}
			st.NodeId, st.Role = r.NodeId, r.Role
			resp.Replicas[i] = st
		})
	}
	wg.Wait()
	for _, st := range resp.Replicas {
		if st.RaftState == raftLeader && st.Term >= info.Term {
			info.Leader, info.Term, info.PutBytes = st.NodeId, st.Term, st.PutBytes
		}
	}
	return resp, nil
}

const raftLeader = "leader"

func (m *member) askReplica(ctx context.Context, id base.StoreID, sh base.ShardID) (*pb.ReplicaStatus, error) {
	if id == m.self {
		return m.replicaStatus(ctx, sh)
	}
	c, err := m.internal(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.Replica(ctx, &pb.ReplicaRequest{ClusterId: m.cluster[:], ShardId: uint64(sh)})
	if err != nil {
		return nil, err
	}
	return resp.Status, nil
}

// TransferLeader implements AdminService: it asks the leader, follows hints while leadership moves, and waits until the
// target leads.
func (s *adminService) TransferLeader(ctx context.Context, req *pb.TransferLeaderRequest) (
	*pb.TransferLeaderResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	sh, to := base.ShardID(req.ShardId), base.StoreID(req.ToNode)
	info, err := s.shard(ctx, m, sh)
	if err != nil {
		return nil, err
	}
	members := make([]base.StoreID, 0, len(info.Replicas))
	listed := false
	for _, r := range info.Replicas {
		members = append(members, base.StoreID(r.NodeId))
		listed = listed || r.NodeId == req.ToNode && r.Role == base.RoleVoter.String()
	}
	if !listed {
		return nil, status.Errorf(codes.FailedPrecondition, "%s has no voter on %s", sh, to)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	from := base.StoreID(info.Leader)
	for try := 0; ; try++ {
		if from == 0 {
			from = members[try%len(members)]
		}
		term, leader, err := m.askTransfer(ctx, from, sh, to)
		switch {
		case err != nil && status.Code(err) != codes.Unavailable:
			return nil, err
		case err == nil && term > 0:
			return &pb.TransferLeaderResponse{FromNode: uint64(from), ToNode: uint64(to), Term: term}, nil
		}
		if leader == from {
			leader = 0
		}
		from = leader
		t := time.NewTimer(initPoll)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, status.Errorf(codes.Unavailable, "no leader of %s could be asked: %v", sh, err)
		}
	}
}

func (m *member) askTransfer(ctx context.Context, at base.StoreID, sh base.ShardID, to base.StoreID) (
	term uint64, leader base.StoreID, err error) {
	if at == m.self {
		return m.transfer(ctx, sh, to)
	}
	c, err := m.internal(at)
	if err != nil {
		return 0, 0, status.Error(codes.Unavailable, err.Error())
	}
	resp, err := c.Transfer(ctx, &pb.TransferRequest{ClusterId: m.cluster[:], ShardId: uint64(sh), ToNode: uint64(to)})
	if err != nil {
		return 0, 0, err
	}
	return resp.Term, base.StoreID(resp.Leader), nil
}
