package node

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/snapshotter"
)

// snapshots is what the store sends its snapshots through. It breaks the circle of store and service, each of which
// needs the other to be made: service is set before either runs.
type snapshots struct{ service *snapshotter.Service }

// Send implements shard.Snapshots. A replica that is to vote again comes before one that is only being moved.
func (s *snapshots) Send(r shard.SnapshotRequest) {
	p := snapshotter.Rebalance
	if r.Recovery {
		p = snapshotter.Recovery
	}
	s.service.Send(snapshotter.Request{
		Shard: r.Shard, From: r.From, To: r.To, ToStore: r.ToStore, Term: r.Term, Index: r.Index, Priority: p,
		Done: r.Done,
	})
}

// newSnapshots makes the service over the member's store.
func (m *member) newSnapshots() error {
	s := &m.n.cfg.Settings
	svc, err := snapshotter.New(snapshotter.Config{
		Engine: m.n.eng, Cluster: m.cluster, Store: m.self, Target: fencedTarget{m.store, m.book}, Dial: m.dialSnapshots,
		Logger: m.log, Registerer: m.n.reg, Clock: m.clock,
		SendBytesPerSecond: s.SnapshotSendBytes, ReceiveBytesPerSecond: s.SnapshotReceiveBytes,
	})
	if err != nil {
		return fmt.Errorf("start snapshots: %w", err)
	}
	m.snapshots.service = svc
	return nil
}

// dialSnapshots returns the connection for snapshots to a node: one of its own, so that bulk data is in nobody's way
// (L1).
func (m *member) dialSnapshots(id base.StoreID) (grpc.ClientConnInterface, error) {
	addr, ok := m.book.Addr(id)
	if !ok {
		return nil, fmt.Errorf("address of %s is unknown", id)
	}
	return m.n.bulk.to(addr)
}

// SetSnapshotLimits implements AdminService.
func (s *adminService) SetSnapshotLimits(_ context.Context, req *pb.SetSnapshotLimitsRequest) (
	*pb.SetSnapshotLimitsResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	for _, v := range []uint64{req.SendBytesPerSecond, req.ReceiveBytesPerSecond} {
		if v != 0 && v < snapshotter.MinBytesPerSecond {
			return nil, status.Errorf(codes.InvalidArgument, "snapshot limit of %d bytes/s, want %d at least, or 0 to keep it",
				v, snapshotter.MinBytesPerSecond)
		}
	}
	send, receive := m.snapshots.service.SetLimits(req.SendBytesPerSecond, req.ReceiveBytesPerSecond)
	m.log.Info("snapshot limits set", "send_bytes_per_second", send, "receive_bytes_per_second", receive)
	return &pb.SetSnapshotLimitsResponse{SendBytesPerSecond: send, ReceiveBytesPerSecond: receive}, nil
}

// ListSnapshots implements AdminService.
func (s *adminService) ListSnapshots(context.Context, *pb.ListSnapshotsRequest) (*pb.ListSnapshotsResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	return &pb.ListSnapshotsResponse{Snapshots: m.snapshotsHere()}, nil
}

// Snapshots implements InternalService.
func (s *internalService) Snapshots(ctx context.Context, req *pb.SnapshotsRequest) (*pb.SnapshotsResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	return &pb.SnapshotsResponse{Snapshots: m.snapshotsHere()}, nil
}

func (m *member) snapshotsHere() []*pb.SnapshotProgress {
	var out []*pb.SnapshotProgress
	for _, p := range m.snapshots.service.Progress() {
		out = append(out, &pb.SnapshotProgress{
			ShardId: uint64(p.Shard), FromNode: uint64(p.FromStore), ToNode: uint64(p.ToStore),
			ToReplicaId: uint64(p.ToReplica), Sending: p.Sending, Phase: p.Phase.String(), BytesDone: p.Done,
			BytesTotal: p.Total, BytesPerSecond: uint64(max(p.Rate, 0)), ElapsedMs: uint64(p.Elapsed.Milliseconds()),
			Priority: p.Priority.String(),
		})
	}
	return out
}

// snapshotOf asks the node that leads a shard for the snapshot that it sends of it, nil if there is none to tell of.
func (m *member) snapshotOf(ctx context.Context, at base.StoreID, id base.ShardID) *placement.SnapshotNow {
	list := m.snapshotsHere()
	if at != m.self {
		c, err := m.internal(at)
		if err != nil {
			return nil
		}
		resp, err := c.Snapshots(ctx, &pb.SnapshotsRequest{ClusterId: m.cluster[:]})
		if err != nil {
			return nil
		}
		list = resp.Snapshots
	}
	for _, p := range list {
		if p.ShardId == uint64(id) && p.Sending {
			return &placement.SnapshotNow{
				To: base.ReplicaID(p.ToReplicaId), Phase: p.Phase, Done: p.BytesDone, Total: p.BytesTotal,
				Rate: p.BytesPerSecond, Elapsed: millis(p.ElapsedMs),
			}
		}
	}
	return nil
}
