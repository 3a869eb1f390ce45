package node

import (
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// RemoveNode implements AdminService.
func (s *adminService) RemoveNode(ctx context.Context, req *pb.RemoveNodeRequest) (*pb.RemoveNodeResponse, error) {
	return toMeta(ctx, s.n, req, removeNode, pb.AdminServiceClient.RemoveNode)
}

// removeNode strikes a node from the cluster. Check: an empty node, or a dead one without which every shard still has a
// quorum. Record: its commission in the meta shard says so for good, and from then on it counts as lost. Fence: everyone
// who can be reached refuses it at once, the others hear of it with their next report. It may be repeated.
func removeNode(ctx context.Context, m *member, req *pb.RemoveNodeRequest) (*pb.RemoveNodeResponse, error) {
	id := base.StoreID(req.NodeId)
	nodes, err := m.dir.Nodes(ctx)
	if err != nil {
		return nil, directoryStatus(err)
	}
	at := slices.IndexFunc(nodes, func(n placement.Node) bool { return n.ID == id })
	if at < 0 {
		return nil, status.Errorf(codes.NotFound, "no node %s", id)
	}
	if id == m.self {
		return nil, status.Errorf(codes.FailedPrecondition,
			"%s leads the meta shard: decommission it, or stop its process, and ask again", id)
	}
	listing, err := m.listing(ctx, id)
	if err != nil {
		return nil, err
	}
	if req.Dead {
		err = m.checkDead(ctx, nodes, id, listing)
	} else {
		err = m.checkEmpty(ctx, id, listing)
	}
	if err != nil {
		return nil, err
	}
	if err := m.dir.SetCommission(ctx, id, placement.Removed); err != nil {
		return nil, directoryStatus(err)
	}
	m.jobs.marks.forget()
	m.learnFences([]uint64{req.NodeId})
	m.spreadFence(ctx, id, nodes)
	if err := m.cancelJobsFor(ctx, []base.StoreID{id}); err != nil {
		return nil, err // it may be repeated
	}
	m.log.Warn("node removed", "removed", id.String(), "dead", req.Dead, "shards", len(listing))
	return &pb.RemoveNodeResponse{Shards: uint32(len(listing))}, nil
}

// listing returns the shards that list a node, as the index and the reports have them.
func (m *member) listing(ctx context.Context, id base.StoreID) (out []*base.Descriptor, err error) {
	for after := []byte(nil); ; {
		page, next, err := m.dir.ListShards(ctx, after, listPage)
		if err != nil {
			return nil, directoryStatus(err)
		}
		for _, s := range page {
			d := s.Desc
			if newer, ok := m.reports.view.Descriptor(d.Shard); ok && newer.Epoch.Newer(d.Epoch) {
				d = newer
			}
			if _, ok := d.ReplicaOn(id); ok {
				out = append(out, d)
			}
		}
		if after = next; next == nil {
			return out, nil
		}
	}
}

// checkEmpty refuses a node that has replicas, or may yet be given some.
func (m *member) checkEmpty(ctx context.Context, id base.StoreID, listing []*base.Descriptor) error {
	marks, err := readMarks(ctx, m.dir)
	if err != nil {
		return directoryStatus(err)
	}
	st := m.reports.view.Stores()[id]
	switch c := marks.commissions[id]; {
	case len(listing) > 0:
		return status.Errorf(codes.FailedPrecondition,
			"%s has replicas of %d shards, %s among them: decommission it first, or say that it is dead", id, len(listing),
			listing[0].Shard)
	case c != placement.Decommissioned && c != placement.Removed:
		return status.Errorf(codes.FailedPrecondition, "%s has not been decommissioned: decommission it first", id)
	case st.Alive && st.Replicas > 0:
		return status.Errorf(codes.Aborted, "%s still drops %d replicas: try again in a moment", id, st.Replicas)
	}
	return nil
}

// checkDead refuses a node that lives, and one whose loss some shard could not bear: what is left of that may need it. A
// removal is for good, and a report may be seconds old, so that every node which counts is asked whether it lives.
func (m *member) checkDead(ctx context.Context, nodes []placement.Node, id base.StoreID, listing []*base.Descriptor) error {
	stores := m.reports.view.Stores()
	if st := stores[id]; st.Alive {
		return status.Errorf(codes.FailedPrecondition, "%s is alive, it reported %s ago: decommission it, or stop it first",
			id, st.LastSeen.Round(1e6))
	}
	answers := m.answering(ctx, nodes, func(s base.StoreID) bool {
		return s == id || stores[s].Alive && slices.ContainsFunc(listing, func(d *base.Descriptor) bool {
			_, ok := d.ReplicaOn(s)
			return ok
		})
	})
	if answers[id] {
		return status.Errorf(codes.FailedPrecondition, "%s is alive, it answers: decommission it, or stop it first", id)
	}
	for _, d := range listing {
		if !bears(d, id, func(s base.StoreID) bool { return s == m.self || answers[s] }) {
			return status.Errorf(codes.FailedPrecondition,
				"%s has no quorum without %s: start other nodes of it first, or see `shardctl unsafe recover-quorum`", d.Shard, id)
		}
	}
	return nil
}

// answering asks nodes whether they live, at the same time.
func (m *member) answering(ctx context.Context, nodes []placement.Node, which func(base.StoreID) bool) map[base.StoreID]bool {
	var mu sync.Mutex
	out := map[base.StoreID]bool{}
	_ = atOnce(len(nodes), func(i int) error {
		n := &nodes[i]
		if n.ID == m.self || !which(n.ID) {
			return nil
		}
		ask, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		st, err := m.n.askStatus(ask, n.Address)
		if err == nil && st.ClusterId == m.cluster.String() && base.StoreID(st.NodeId) == n.ID {
			mu.Lock()
			defer mu.Unlock()
			out[n.ID] = true
		}
		return nil
	})
	return out
}

// bears reports whether a shard keeps a live quorum without a store, of both configurations while it is joint.
func bears(d *base.Descriptor, without base.StoreID, alive func(base.StoreID) bool) bool {
	for _, with := range []base.Role{base.RoleIncoming, base.RoleOutgoing} {
		total, live := 0, 0
		for _, r := range d.Replicas {
			if r.Role != base.RoleVoter && r.Role != with {
				continue
			}
			total++
			if r.Store != without && alive(r.Store) {
				live++
			}
		}
		if live <= total/2 {
			return false
		}
	}
	return true
}

// cancelJobsFor ends the jobs that would give replicas to nodes that are gone for good, or empty them: they would wait for
// those nodes, and hold their shards meanwhile.
func (m *member) cancelJobsFor(ctx context.Context, gone []base.StoreID) error {
	jobs, err := m.dir.RunningJobs(ctx)
	if err != nil {
		return directoryStatus(err)
	}
	for _, j := range jobs {
		empties := j.Spec.Kind == placement.JobDrain || j.Spec.Kind == placement.JobDecommission
		if !slices.Contains(gone, j.Spec.To) && !(empties && slices.Contains(gone, j.Spec.From)) {
			continue
		}
		_, err := m.jobs.cancel(ctx, j.ID)
		if err != nil && !errors.Is(err, placement.ErrEnded) && !errors.Is(err, placement.ErrNotFound) {
			return directoryStatus(err)
		}
		m.log.Info("job cancelled: its node is gone", "job", j.ID.String())
	}
	return nil
}

// spreadFence has the nodes that answer fence a node now.
func (m *member) spreadFence(ctx context.Context, id base.StoreID, nodes []placement.Node) {
	req := &pb.FenceStoresRequest{ClusterId: m.cluster[:], Nodes: []uint64{uint64(id)}}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	err := atOnce(len(nodes), func(i int) error {
		to := nodes[i].ID
		if to == id || to == m.self || m.book.isFenced(to) {
			return nil
		}
		c, err := m.internal(to)
		if err == nil {
			_, err = c.FenceStores(ctx, req)
		}
		return err
	})
	if err != nil {
		m.log.Info("some nodes hear of a removal with their next report only", "removed", id.String(), "err", err)
	}
}
