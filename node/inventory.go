package node

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/recovery"
)

// What a node has on its own disk, asked for directly: nothing here may depend on the meta shard.

const (
	// inventoryPage is how many replicas one answer holds: well below the size of a message.
	inventoryPage = 2000
	// inventoryWait bounds the wait for the replicas' workers.
	inventoryWait = time.Second
)

// Inventory implements InternalService.
func (s *internalService) Inventory(ctx context.Context, req *pb.InventoryRequest) (*pb.InventoryResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	if id := base.StoreID(req.AskingNode); m.book.isFenced(id) {
		return nil, removedStatus(id)
	}
	return m.inventory(ctx, req)
}

// inventory is this node's page. For a recovery that has begun it waits for what the recovery is doing here.
func (m *member) inventory(ctx context.Context, req *pb.InventoryRequest) (*pb.InventoryResponse, error) {
	if req.RecoveryId != 0 {
		m.recoverer.here.Lock()
		defer m.recoverer.here.Unlock()
	}
	id, _ := m.n.eng.Ident()
	resp := &pb.InventoryResponse{
		NodeId: uint64(m.self), Addresses: map[uint64]string{uint64(m.self): m.n.addr}, HttpAddress: m.n.publicHTTP(),
		Labels: m.n.cfg.Labels, Version: m.n.cfg.Version, Incarnation: m.incarnation,
	}
	for s, addr := range m.book.all() {
		resp.Addresses[uint64(s)] = addr
	}
	for _, f := range id.Fences {
		resp.Fenced = append(resp.Fenced, uint64(f.Store))
	}
	if r := id.Recovery; r != nil {
		resp.RecoveryId, resp.RecoveryCoordinator = r.ID, uint64(r.Coordinator)
		resp.RecoveryStage, resp.RecoveryToken = r.Stage.String(), r.Token[:]
		resp.RecoveryFailed, resp.RecoverySurvivors = numbers(r.Failed), numbers(r.Survivors)
	}
	if req.RecoveryId != 0 && req.RecoveryId != resp.RecoveryId {
		return nil, status.Errorf(codes.Aborted, "%s is in recovery %d, not %d", m.self, resp.RecoveryId, req.RecoveryId)
	}
	wait, cancel := context.WithTimeout(ctx, inventoryWait)
	defer cancel()
	all := m.store.Inventory(wait, base.ShardID(req.AfterShardId), inventoryPage)
	resp.More = len(all) == inventoryPage
	for i := range all {
		inv := &all[i]
		r := &pb.LocalReplica{
			ShardId: uint64(inv.Shard), ReplicaId: uint64(inv.Replica), Faulted: inv.Faulted, Term: inv.Term,
			LastTerm: inv.LastTerm, LastIndex: inv.LastIndex, Commit: inv.Commit, Applied: inv.Applied, Leads: inv.Leads,
			Leader: uint64(inv.Leader), SilentMs: uint64(inv.Silent.Milliseconds()), Changes: inv.Changes,
			MergingInto: uint64(inv.MergingInto), Busy: inv.Busy, Settled: inv.Settled,
		}
		if inv.Desc != nil {
			r.Descriptor_ = inv.Desc.Append(nil)
		}
		resp.Replicas = append(resp.Replicas, r)
	}
	return resp, nil
}

func numbers(ids []base.StoreID) (out []uint64) {
	for _, id := range ids {
		out = append(out, uint64(id))
	}
	return out
}

// askInventory asks a node for all its pages, which come as one.
func (m *member) askInventory(ctx context.Context, p place, recoveryID uint64) (*pb.InventoryResponse, error) {
	var whole *pb.InventoryResponse
	req := &pb.InventoryRequest{ClusterId: m.cluster[:], RecoveryId: recoveryID}
	for {
		var page *pb.InventoryResponse
		var err error
		if p.id == m.self {
			page, err = m.inventory(ctx, req)
		} else {
			c, cerr := m.internalAt(p)
			if cerr != nil {
				return nil, cerr
			}
			ask, cancel := context.WithTimeout(ctx, callTimeout)
			page, err = c.Inventory(ask, req)
			cancel()
		}
		switch {
		case err != nil:
			return nil, err
		case whole == nil:
			whole = page
		default:
			whole.Replicas = append(whole.Replicas, page.Replicas...)
		}
		if !page.More || len(page.Replicas) == 0 {
			return whole, nil
		}
		req.AfterShardId = page.Replicas[len(page.Replicas)-1].ShardId
	}
}

// planReplicas are the replicas of an inventory as the planner takes them.
func planReplicas(inv *pb.InventoryResponse) ([]recovery.Replica, error) {
	var out []recovery.Replica
	for _, r := range inv.Replicas {
		p := recovery.Replica{
			Store: base.StoreID(inv.NodeId), Shard: base.ShardID(r.ShardId), Replica: base.ReplicaID(r.ReplicaId),
			Faulted: r.Faulted, Term: r.Term, LastTerm: r.LastTerm, LastIndex: r.LastIndex, Commit: r.Commit,
			Applied: r.Applied, Leads: r.Leads, Silent: time.Duration(r.SilentMs) * time.Millisecond, Changes: r.Changes,
			Busy: r.Busy, Settled: r.Settled,
		}
		if len(r.Descriptor_) > 0 {
			d, _, err := base.DecodeDescriptor(r.Descriptor_)
			if err != nil {
				return nil, status.Errorf(codes.DataLoss, "inventory of n%d: %v", inv.NodeId, err)
			}
			p.Desc = d
		}
		out = append(out, p)
	}
	return out, nil
}
