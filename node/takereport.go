package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// reports is both ends of reporting: what this node last told the meta leader, and, where it leads the meta shard,
// what the others told it.
type reports struct {
	view *placement.View

	mu struct {
		sync.Mutex
		term       uint64 // of the meta leadership that the view belongs to
		registered map[base.StoreID]placement.Node
		nodes      []placement.Node
		nodesAt    time.Duration // Boot time of nodes
	}

	sent sentReports   // owned by the report loop
	wake chan struct{} // capacity 1: there is news that should not wait for the next interval
}

// Report implements InternalService.
func (s *internalService) Report(ctx context.Context, req *pb.ReportRequest) (*pb.ReportResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	return m.takeReport(ctx, req)
}

// takeReport is the meta leader's side. Any other node answers with what it knows of the meta shard.
func (m *member) takeReport(ctx context.Context, req *pb.ReportRequest) (*pb.ReportResponse, error) {
	if id := base.StoreID(req.NodeId); m.book.isFenced(id) {
		return nil, removedStatus(id)
	}
	term, leads := m.leadsMeta()
	resp := &pb.ReportResponse{MetaDescriptor: m.metaDesc().Append(nil), Addresses: make(map[uint64]string)}
	if !leads {
		resp.NotLeader, resp.Leader = true, uint64(m.metaLeader())
		for id, addr := range m.book.all() {
			resp.Addresses[uint64(id)] = addr
		}
		resp.Addresses[uint64(m.self)] = m.n.addr
		return resp, nil
	}
	r := &placement.Report{
		Node: placement.Node{
			ID: base.StoreID(req.NodeId), Incarnation: req.Incarnation, Address: req.Address, HTTP: req.HttpAddress,
			Labels: req.Labels, Version: req.Version,
		},
		Number: req.Number, DiskBytes: req.DiskBytes, HeapBytes: req.GoHeapBytes, Replicas: req.ReplicaCount, Leaders: req.LeaderCount,
		FreeBytes: req.DiskFreeBytes, Level: req.DiskLevel, Unhealthy: req.Unhealthy, Full: req.Full,
	}
	descs := make([]*base.Descriptor, len(req.Replicas))
	for i, rep := range req.Replicas {
		if len(rep.Descriptor_) == 0 {
			continue // it waits for its first state: of use to the planner only
		}
		d, _, err := base.DecodeDescriptor(rep.Descriptor_)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "report of n%d: %v", req.NodeId, err)
		}
		descs[i] = d
		if rep.ShardId == 0 { // from a node of the version before, which tells only these
			rep.ShardId = uint64(d.Shard)
			if own, ok := d.ReplicaOn(r.Node.ID); ok {
				rep.ReplicaId = uint64(own.Replica)
			}
		}
		r.States = append(r.States, placement.ReplicaState{
			Desc: d, Leads: rep.Leads, Term: rep.Term, PutBytes: rep.PutBytes, Faulted: rep.Faulted,
		})
	}
	for _, id := range req.Removed {
		r.Removed = append(r.Removed, base.ShardID(id))
	}
	m.reports.enterTerm(term)
	if err := m.register(ctx, &r.Node); err != nil {
		return nil, directoryStatus(err)
	}
	full, err := m.reports.add(term, r)
	if err != nil {
		return nil, directoryStatus(err)
	}
	lost, err := m.plan.report(term, planReport(req, descs, m.clock.Boot()))
	if err != nil {
		return nil, directoryStatus(err)
	}
	m.index.note(term, r.States)
	nodes, err := m.nodes(ctx)
	if err != nil {
		return nil, directoryStatus(err)
	}
	for _, n := range nodes {
		resp.Addresses[uint64(n.ID)] = n.Address
	}
	resp.WantFull, resp.Leader = full || lost, uint64(m.self)
	resp.Draining = m.drainMode(ctx, r.Node.ID)
	resp.Unfit = m.unfitNodes(ctx)
	resp.Fenced = m.removedNodes(ctx)
	resp.SplitBytes, resp.SplitRequests = m.splitNews()
	return resp, nil
}

// unfitNodes lists the live nodes that should be given no leaderships.
func (m *member) unfitNodes(ctx context.Context) (out []uint64) {
	for id, st := range m.reports.view.Stores() {
		if !st.Alive {
			continue // nobody transfers to a store that does not answer
		}
		full := st.Level != "" && st.Level != engine.SpaceOK.String()
		mode := m.drainMode(ctx, id)
		if full || st.Unhealthy != "" || mode != "" && mode != placement.DrainNone.String() {
			out = append(out, uint64(id))
		}
	}
	slices.Sort(out)
	return out
}

// learnUnfit keeps what the meta leader says of the others.
func (m *member) learnUnfit(ids []uint64) {
	unfit := make(map[base.StoreID]bool, len(ids))
	for _, id := range ids {
		unfit[base.StoreID(id)] = true
	}
	m.unfit.Store(&unfit)
}

// mayLead is shard.Config.MayLead.
func (m *member) mayLead(id base.StoreID) bool {
	unfit := m.unfit.Load()
	return unfit == nil || !(*unfit)[id]
}

// enterTerm forgets what was heard under an earlier leadership.
func (r *reports) enterTerm(term uint64) {
	mu := &r.mu
	mu.Lock()
	defer mu.Unlock()
	if term <= mu.term {
		return
	}
	mu.term, mu.registered, mu.nodes = term, map[base.StoreID]placement.Node{}, nil
	r.view.Reset()
}

// add takes a report that came under a leadership into the view, unless a later one has begun meanwhile.
func (r *reports) add(term uint64, rep *placement.Report) (wantFull bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if term < r.mu.term {
		return false, fmt.Errorf("report taken at term %d, led at %d now: %w", term, r.mu.term, placement.ErrStale)
	}
	return r.view.Add(rep)
}

// register writes a node's record to the meta shard if it is not known to be there.
func (m *member) register(ctx context.Context, n *placement.Node) error {
	mu := &m.reports.mu
	mu.Lock()
	old, ok := mu.registered[n.ID]
	mu.Unlock()
	if ok && old.Equal(n) {
		return nil
	}
	if err := m.dir.RegisterNode(ctx, *n); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	mu.registered[n.ID], mu.nodes = *n, nil
	return nil
}

// nodesFresh is how old the list of nodes may be that is sent with answers to reports.
const nodesFresh = time.Second

// nodes returns the node records, at most nodesFresh old.
func (m *member) nodes(ctx context.Context) ([]placement.Node, error) {
	mu := &m.reports.mu
	mu.Lock()
	nodes, at := mu.nodes, mu.nodesAt
	mu.Unlock()
	now := m.clock.Boot()
	if nodes != nil && now-at < nodesFresh {
		return nodes, nil
	}
	nodes, err := m.dir.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	mu.nodes, mu.nodesAt = nodes, now
	return nodes, nil
}
