package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// internalService is what nodes ask of each other. Adopt and Join are in become.go, CreateReplicas in founding.go,
// Report in takereport.go, ChangeReplicas in change.go, Verify and Checksum in checksum.go, Snapshots in snapshots.go.
type internalService struct {
	pb.UnimplementedInternalServiceServer
	n *Node
}

// destKey names the node that a call is for: an address may have gone over to another one, such as the node that came
// back without its disk.
const destKey = "shardd-node"

// destConn puts the node that is meant on every call.
type destConn struct {
	grpc.ClientConnInterface
	id base.StoreID
}

// Invoke implements grpc.ClientConnInterface.
func (c destConn) Invoke(ctx context.Context, method string, req, resp any, opts ...grpc.CallOption) error {
	ctx = metadata.AppendToOutgoingContext(ctx, destKey, strconv.FormatUint(uint64(c.id), 10))
	return c.ClientConnInterface.Invoke(ctx, method, req, resp, opts...)
}

// internal returns the client of another node's InternalService.
func (m *member) internal(id base.StoreID) (pb.InternalServiceClient, error) {
	addr, ok := m.book.Addr(id)
	if !ok {
		return nil, fmt.Errorf("address of %s is unknown", id)
	}
	return m.internalAt(place{id, addr})
}

func (m *member) internalAt(p place) (pb.InternalServiceClient, error) {
	cc, err := m.n.conns.to(p.addr)
	if err != nil {
		return nil, err
	}
	if p.id == 0 {
		return pb.NewInternalServiceClient(cc), nil
	}
	return pb.NewInternalServiceClient(destConn{cc, p.id}), nil
}

// member returns the running member after checking that the caller means it, and its cluster.
func (s *internalService) member(ctx context.Context, cluster []byte) (*member, error) {
	c, err := clusterID(cluster)
	if err != nil {
		return nil, err
	}
	if id, ok := s.n.eng.Ident(); ok && id.Cluster != c {
		return nil, otherCluster(s.n.addr, id.Cluster, c)
	}
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get(destKey) {
		if v != strconv.FormatUint(uint64(m.self), 10) {
			return nil, status.Errorf(codes.Unavailable, "the node at %s is %s now, not n%s", s.n.addr, m.self, v)
		}
	}
	return m, nil
}

// Replica implements InternalService.
func (s *internalService) Replica(ctx context.Context, req *pb.ReplicaRequest) (*pb.ReplicaResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	return m.replicaHere(ctx, base.ShardID(req.ShardId))
}

// Transfer implements InternalService.
func (s *internalService) Transfer(ctx context.Context, req *pb.TransferRequest) (*pb.TransferResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
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
	err = leadStatus(err)
	var not *notLead
	switch {
	case err == nil:
		return term, 0, nil
	case errors.As(err, &not):
		return 0, not.leader, nil
	}
	return 0, 0, err
}
