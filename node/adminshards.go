package node

import (
	"context"

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
	m.describeShards(resp.Shards)
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

// DescribeShard implements AdminService: the descriptor as the leader has applied it, or the newest that is known if no
// leader answers, and what each of its members says.
func (s *adminService) DescribeShard(ctx context.Context, req *pb.DescribeShardRequest) (
	*pb.DescribeShardResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	d, err := m.findShard(ctx, base.ShardID(req.ShardId))
	if err != nil {
		return nil, err
	}
	answers := m.askReplicas(ctx, d)
	newer := d
	for _, a := range answers {
		if a.desc != nil && a.desc.Epoch.Newer(newer.Epoch) {
			newer = a.desc
		}
	}
	if newer != d {
		d, answers = newer, m.askReplicas(ctx, newer)
	}
	info := shardInfo{desc: d}
	resp := &pb.DescribeShardResponse{}
	for i, r := range d.Replicas {
		st := answers[i].status
		if st.ReplicaId == 0 {
			st.ReplicaId = uint64(r.Replica)
		}
		st.NodeId, st.Role = uint64(r.Store), r.Role.String()
		info.putBytes = max(info.putBytes, st.PutBytes)
		if st.RaftState == raftLeader && st.Term >= info.term {
			info.leader, info.term = r.Store, st.Term
		}
		resp.Replicas = append(resp.Replicas, st)
	}
	if info.leader == 0 {
		info.leader = m.leaderOf(d)
	}
	resp.Shard = info.proto()
	return resp, nil
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
	d, err := m.findShard(ctx, sh)
	if err != nil {
		return nil, err
	}
	if r, ok := d.ReplicaOn(to); !ok || r.Role != base.RoleVoter {
		// What is known here may be old.
		if now, nerr := m.shardNow(ctx, sh); nerr == nil {
			r, ok = now.Desc.ReplicaOn(to)
		}
		if !ok || r.Role != base.RoleVoter {
			return nil, status.Errorf(codes.FailedPrecondition, "%s has no voter on %s", sh, to)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	from, term, err := m.moveLeader(ctx, sh, to)
	if err != nil {
		return nil, err
	}
	m.log.Info("leadership transferred on request", "shard", sh.String(), "from", from.String(), "to", to.String())
	return &pb.TransferLeaderResponse{FromNode: uint64(from), ToNode: uint64(to), Term: term}, nil
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
