package node

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
)

// internalService is what nodes ask of each other. Adopt and Join are in become.go, CreateReplicas in founding.go,
// Report in report.go.
type internalService struct {
	pb.UnimplementedInternalServiceServer
	n *Node
}

// member returns the running member after checking that the caller means its cluster.
func (s *internalService) member(cluster []byte) (*member, error) {
	c, err := clusterID(cluster)
	if err != nil {
		return nil, err
	}
	if id, ok := s.n.eng.Ident(); ok && id.Cluster != c {
		return nil, otherCluster(s.n.addr, id.Cluster, c)
	}
	return s.n.needMember()
}

// Replica implements InternalService.
func (s *internalService) Replica(ctx context.Context, req *pb.ReplicaRequest) (*pb.ReplicaResponse, error) {
	m, err := s.member(req.ClusterId)
	if err != nil {
		return nil, err
	}
	st, err := m.replicaStatus(ctx, base.ShardID(req.ShardId))
	if err != nil {
		return nil, err
	}
	return &pb.ReplicaResponse{Status: st}, nil
}

// Transfer implements InternalService.
func (s *internalService) Transfer(ctx context.Context, req *pb.TransferRequest) (*pb.TransferResponse, error) {
	m, err := s.member(req.ClusterId)
	if err != nil {
		return nil, err
	}
	term, leader, err := m.transfer(ctx, base.ShardID(req.ShardId), base.StoreID(req.ToNode))
	if err != nil {
		return nil, err
	}
	return &pb.TransferResponse{Term: term, Leader: uint64(leader)}, nil
}

// transfer moves leadership from this store. term 0: this store does not lead, leader is who does, 0 if unknown.
func (m *member) transfer(ctx context.Context, s base.ShardID, to base.StoreID) (uint64, base.StoreID, error) {
	term, err := m.store.Transfer(ctx, s, to)
	var not *shard.NotLeaderError
	var absent *shard.NotFoundError
	switch {
	case err == nil:
		return term, 0, nil
	case errors.As(err, &not):
		return 0, not.Leader, nil
	case errors.As(err, &absent):
		return 0, 0, nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return 0, 0, status.FromContextError(err).Err()
	}
	return 0, 0, status.Errorf(codes.FailedPrecondition, "%v", err)
}
